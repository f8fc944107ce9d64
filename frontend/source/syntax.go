package source

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/parser"
)

// Syntax returns the image of the frontend that a Dockerfile or a build argument asks for, without a digest, and the line; "" for none.
func Syntax(dockerfile []byte, args map[string]string) (image string, line int) {
	image, line = parser.Directive("syntax", dockerfile)
	if v, ok := args["BUILDKIT_SYNTAX"]; ok {
		image, line = v, 0
	}
	image, _, _ = strings.Cut(image, " ")
	image, _, _ = strings.Cut(image, "@")
	return image, line
}

// CheckArgs refuses values that BuildKit's own build arguments cannot have. BUILDKIT_GIT_ADVICE=1 shows what git advises when a commit is
// checked out: kiln reads commits without that, so there is nothing to show.
func CheckArgs(args map[string]string) error {
	const name = "BUILDKIT_GIT_ADVICE"
	if v := args[name]; v != "" {
		if _, err := strconv.ParseBool(v); err != nil {
			return &parser.Error{Msg: fmt.Sprintf("build argument %s=%s: it has to be true or false", name, v)}
		}
	}
	return nil
}
