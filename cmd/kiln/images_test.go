package main

import (
	"testing"

	"github.com/kilnbuild/kiln/registry/registrytest"
	"github.com/rogpeppe/go-internal/testscript"
)

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
