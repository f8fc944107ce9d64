package values

import (
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// unsupported is a flag of docker buildx build, or of docker build before it, that kiln knows and cannot do.
type unsupported struct {
	name      string
	shorthand string
	// bare says that the flag may stand without a value, which is then "true".
	bare bool
	// nothing are values that ask for nothing, and so are accepted; "" always is.
	nothing []string
	// accepted says that no value asks for anything that kiln does not do anyway.
	accepted bool
	// hint says what to do in its place.
	hint string
	// disable says that a comma list with disabled=true asks for nothing.
	disable bool
}

var unsupportedBuildFlags = []unsupported{
	{name: "builder", nothing: []string{"default"}},
	{name: "policy", disable: true},

	// Flags of the builder that was there before BuildKit. BuildKit leaves no containers behind, and reads the context in
	// place of sending it, and so does kiln.
	{name: "rm", bare: true, accepted: true},
	{name: "force-rm", bare: true, accepted: true},
	{name: "compress", bare: true, accepted: true},
	{name: "squash", bare: true, nothing: []string{"false"},
		hint: "FROM scratch and COPY --from=STAGE / / make an image of one layer"},
	{name: "isolation", nothing: []string{"default"}, hint: "kiln has a sandbox of its own for RUN"},
	{name: "security-opt", hint: "kiln has a sandbox of its own for RUN"},
}

// AddUnsupported makes flags of docker buildx build known that kiln does not support; they are not listed by --help.
func AddUnsupported(flags *pflag.FlagSet) {
	list := slices.Clone(unsupportedBuildFlags)
	for i := range list {
		u := &list[i]
		f := flags.VarPF(u, u.name, u.shorthand, "not supported yet")
		f.Hidden = true
		if u.bare {
			f.NoOptDefVal = "true"
		}
	}
}

// Set implements pflag.Value: it says that the flag is not supported, unless the value asks for nothing.
func (u *unsupported) Set(value string) error {
	if value == "" || u.accepted || slices.Contains(u.nothing, value) {
		return nil
	}
	if u.disable {
		for field := range strings.SplitSeq(value, ",") {
			if k, v, _ := strings.Cut(field, "="); k == "disabled" && (v == "true" || v == "1") {
				return nil
			}
		}
	}
	if u.hint != "" {
		return usagef("--%s is not supported: %s", u.name, u.hint)
	}
	return usagef("--%s is not supported yet", u.name)
}

// String implements pflag.Value.
func (u *unsupported) String() string { return "" }

// Type implements pflag.Value.
func (u *unsupported) Type() string { return "string" }
