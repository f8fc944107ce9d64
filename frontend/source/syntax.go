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

// GitAdvice reports whether a build argument asks for what git advises where a commit is checked out.
func GitAdvice(args map[string]string) bool {
	on, _ := strconv.ParseBool(args[argGitAdvice]) // CheckArgs refuses others
	return on
}

const argGitAdvice = "BUILDKIT_GIT_ADVICE"

// CheckArgs refuses values that BuildKit's own build arguments cannot have.
func CheckArgs(args map[string]string) error {
	if v := args[argGitAdvice]; v != "" {
		if _, err := strconv.ParseBool(v); err != nil {
			return &parser.Error{Msg: fmt.Sprintf("build argument %s=%s: it has to be true or false", argGitAdvice, v)}
		}
	}
	return nil
}
