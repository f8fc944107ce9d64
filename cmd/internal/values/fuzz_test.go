package values

import (
	"encoding/csv"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/tonistiigi/go-csvvalue"
)

// FuzzFlags has any value of the flags that have a syntax of their own: what is wrong is an error of usage that has the
// value, and what is right is complete.
func FuzzFlags(f *testing.F) {
	for _, v := range []string{
		"type=oci,dest=x", "type=local", "-", "dir", "type=image,push=true,name=a", `"type=docker","dest=a,b"`, "id=a,src=b", "id=a,env=B,type=env", "id=", "nofile=1:2", "core=-1",
		"1g", "host:1.2.3.4", "h=::1", "host:host-gateway", "linux/amd64,linux/arm64", "name=docker-image://x", "default", "default=/x,/y", `a"b`, `"`, "a=b,,", "", ",", "type=\x00",
	} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, value string) {
		values := []string{value}
		outputs, outputErr := Outputs(values, false, false)
		for _, o := range outputs {
			if o.Type == "" || o.Attrs == nil || o.Type == build.OutputLocal && o.Dest == "" {
				t.Errorf("--output %q is %+v", value, o)
			}
		}
		secrets, secretErr := Secrets(values)
		for _, s := range secrets {
			if s.ID == "" || (s.Src == "") == (s.Env == "") {
				t.Errorf("--secret %q is %+v", value, s)
			}
		}
		_, platformErr := Platforms(values)
		_, argErr := BuildArgs(values)
		_, labelErr := Labels(values)
		_, contextErr := BuildContexts(values)
		_, hostErr := ExtraHosts(values)
		_, ulimitErr := Ulimits(values)
		_, networkErr := Network(value)
		_, _, allowErr := Allow(values)
		for _, err := range []error{outputErr, secretErr, platformErr, argErr, labelErr, contextErr, hostErr, ulimitErr, networkErr, allowErr} {
			if _, ok := errors.AsType[*input.Error](err); err != nil && !ok {
				t.Errorf("%q is no error of usage: %v", value, err)
			}
		}
		// The lists in values are those of RFC 4180, as encoding/csv reads them.
		if strings.ContainsAny(value, "\r\n") || value == "" {
			return
		}
		want, err := csv.NewReader(strings.NewReader(value)).Read()
		got, gotErr := csvvalue.Fields(value, nil)
		if (err == nil) != (gotErr == nil) || err == nil && !slices.Equal(got, want) {
			t.Errorf("%q has the fields %q, %v, and should have %q, %v", value, got, gotErr, want, err)
		}
	})
}
