package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/registry/registrytest"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestUntrustedRow shows a row of an image whose index names it and its platform with escape sequences.
func TestUntrustedRow(t *testing.T) {
	const evil = "a\x1b[2J\u009b2J\u202e"
	row := imageRow{Repository: evil, Tag: evil, ID: evil, Platform: evil}
	var table, asJSON bytes.Buffer
	printTable(&table, []imageRow{row})
	print, err := rowPrinter("json")
	if err != nil {
		t.Fatal(err)
	}
	if err := print(&asJSON, row); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{table.String(), asJSON.String()} {
		if strings.ContainsAny(out, "\x1b\u009b\u202e") {
			t.Errorf("printed %q", out)
		}
	}
}

// TestImages runs the stories of testdata/images, about commands for images:
//
//	$PRIVATE   a registry whose user "user" has the password "secret"
//	$OPEN      a registry that asks for no password
func TestImages(t *testing.T) {
	private, open := registrytest.StartWithUser(t, "user", "secret"), registrytest.Start(t)
	stories(t, testscript.Params{Dir: "testdata/images"}, func(env *testscript.Env) error {
		env.Setenv("PRIVATE", private.Host)
		env.Setenv("OPEN", open.Host)
		return nil
	})
}
