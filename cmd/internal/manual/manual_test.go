package manual

import (
	"reflect"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/config"
)

// TestConfiguration shows that the page describes every key of kiln.toml.
func TestConfiguration(t *testing.T) {
	var check func(of reflect.Type)
	check = func(of reflect.Type) {
		for of.Kind() == reflect.Pointer || of.Kind() == reflect.Map || of.Kind() == reflect.Slice {
			of = of.Elem()
		}
		if of.Kind() != reflect.Struct {
			return
		}
		for i := range of.NumField() {
			key, field := of.Field(i).Tag.Get("toml"), of.Field(i)
			if key == "" || key == "-" {
				continue
			}
			if !strings.Contains(configuration, key) {
				t.Errorf("kiln.toml(5) does not have the key %s of %s", key, of)
			}
			check(field.Type)
		}
	}
	check(reflect.TypeFor[config.Config]())
}

func TestEscaped(t *testing.T) {
	if got, want := escaped("-a 'b\\c' ~…"), `\-a \(aqb\ec\(aq \(ti\[u2026]`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	p := &page{}
	p.text(".a word")
	p.line("'b")
	if got, want := p.out.String(), "\\&.a word\n\\&'b\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
