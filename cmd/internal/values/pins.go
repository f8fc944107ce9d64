package values

import (
	"os"
	"strconv"
	"sync"

	"github.com/kilnbuild/kiln/internal/sourcepolicy"
)

// Optional is a boolean flag whose default is not known to the command line.
type Optional struct {
	// Value is nil if the flag is not given.
	Value *bool
}

// Set implements pflag.Value.
func (o *Optional) Set(value string) error {
	on, err := strconv.ParseBool(value)
	if err != nil {
		return err
	}
	o.Value = &on
	return nil
}

// String implements pflag.Value.
func (o *Optional) String() string {
	if o.Value == nil {
		return ""
	}
	return strconv.FormatBool(*o.Value)
}

// Type implements pflag.Value.
func (o *Optional) Type() string { return "bool" }

// policyVariable is the variable that buildx and buildctl have for the same.
const policyVariable = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"

// SourcePolicy returns the policy in the file that the environment names; nil for none.
func SourcePolicy() (*sourcepolicy.Policy, error) { return sourcePolicy() }

// sourcePolicy reads it once, for all targets.
var sourcePolicy = sync.OnceValues(func() (*sourcepolicy.Policy, error) {
	path := os.Getenv(policyVariable)
	if path == "" {
		return nil, nil
	}
	p, err := sourcepolicy.Read(path)
	if err != nil {
		return nil, usagef("$%s: %w", policyVariable, err)
	}
	return p, nil
})
