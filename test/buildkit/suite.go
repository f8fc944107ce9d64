package main

import (
	"fmt"
	"os"
	"strings"
)

// suite is a set of tests of BuildKit.
type suite struct {
	name   string // of its lists: passes/NAME.txt
	binary string // of its tests, in binaries
	dir    string // of its package below BuildKit's module, where it runs
	// tests matches the top-level tests that the daemon is started for.
	tests string
	// env says which front end the tests use; FRONTEND is replaced by the archive of its image.
	env string
}

var suites = []suite{
	{"dockerfile-builtin", "dockerfile.test", "frontend/dockerfile", "^TestIntegration$", "FRONTEND_BUILTIN_ONLY=1"},
	{"dockerfile-client", "dockerfile.test", "frontend/dockerfile", "^TestIntegration$", "FRONTEND_CLIENT_ONLY=1"},
	{"dockerfile-gateway", "dockerfile.test", "frontend/dockerfile", "^TestIntegration$", "FRONTEND_GATEWAY_ONLY=local:FRONTEND"},
	{"client", "client.test", "client", "^(TestIntegration|TestClientGatewayIntegration|TestCompatibilityIntegration)$", ""},
}

// findSuite returns the suite that words of the command line name.
func findSuite(words []string) (suite, error) {
	name := strings.Join(words, "-")
	for _, s := range suites {
		if s.name == name {
			return s, nil
		}
	}
	return suite{}, usageError(fmt.Sprintf("%q is not a suite: dockerfile builtin, dockerfile client, dockerfile gateway, client",
		strings.Join(words, " ")))
}

// pattern is what -test.run gets to run the tests that match filter, with the worker that is the daemon itself.
func (s suite) pattern(filter string) string {
	if filter == "" {
		filter = ".*"
	}
	return s.tests + "/(" + filter + ")/^worker=oci$"
}

// source is the directory of this module.
func source() string { return os.Getenv("KILN_SUITES_SOURCE") }
