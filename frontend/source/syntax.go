package source

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/parser"
)

// ArgSyntax is the build argument that names a frontend in place of the Dockerfile.
const ArgSyntax = "BUILDKIT_SYNTAX"

// Syntax returns the image of the frontend that a Dockerfile or a build argument asks for, with the words after it, and the line; "" for
// none.
func Syntax(dockerfile []byte, args map[string]string) (image, command string, line int) {
	command, line = parser.Directive("syntax", dockerfile)
	if v, ok := args[ArgSyntax]; ok {
		command, line = v, 0
	}
	command = strings.TrimSpace(command)
	image, _, _ = strings.Cut(command, " ")
	return image, command, line
}

// GitAdvice reports whether a build argument asks for what git advises where a commit is checked out.
func GitAdvice(args map[string]string) bool {
	on, _ := strconv.ParseBool(args[argGitAdvice]) // CheckArgs refuses others
	return on
}

const argGitAdvice = "BUILDKIT_GIT_ADVICE"

// CheckArgs refuses build arguments that are no text, and values that BuildKit's own build arguments cannot have.
func CheckArgs(args map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(args)) {
		if !utf8.ValidString(name + args[name]) {
			return &parser.Error{Msg: fmt.Sprintf("build argument %s: it is not text in UTF-8", strings.ToValidUTF8(name, "\uFFFD"))}
		}
	}
	if v := args[argGitAdvice]; v != "" {
		if _, err := strconv.ParseBool(v); err != nil {
			return &parser.Error{Msg: fmt.Sprintf("build argument %s=%s: it has to be true or false", argGitAdvice, v)}
		}
	}
	return nil
}

// CheckCommand refuses arguments of a RUN that are not UTF-8, as BuildKit does. Digests are made of the JSON of ops, which would have the
// same U+FFFD for different bytes, and so would the history. In all other words of a Dockerfile the parser has put U+FFFD there.
func CheckCommand(args []string) error {
	for _, s := range args {
		for i, r := range s {
			if r != utf8.RuneError || strings.HasPrefix(s[i:], "\uFFFD") {
				continue
			}
			return &parser.Error{
				Msg:  fmt.Sprintf("the command is not text in UTF-8: it has the byte %#x", s[i]),
				Hint: fmt.Sprintf(`save the Dockerfile in UTF-8; a command can make the byte itself, as with printf '\%03o'`, s[i]),
			}
		}
	}
	return nil
}

// CheckSyntax refuses a Dockerfile, which errors call filename, that asks for another frontend: by a *SyntaxError.
func CheckSyntax(filename string, dockerfile []byte, args map[string]string) error {
	whole, command, line := Syntax(dockerfile, args)
	image, _, _ := strings.Cut(whole, "@")
	repository, _ := imagename.SplitTag(image)
	if repository == "" || repository == "dockerfile.v0" {
		return nil
	}
	// It may come from a mirror: mirror.gcr.io/docker/dockerfile, registry.corp/proxy/docker/dockerfile.
	if n, err := imagename.Parse(image); err == nil {
		own := "/" + n.Repository
		if strings.HasSuffix(own, "/docker/dockerfile") || strings.HasSuffix(own, "/docker/dockerfile-upstream") {
			return nil
		}
	}
	return &parser.Error{
		File: filename, Line: line, EndLine: line,
		Msg:  fmt.Sprintf("the frontend %s is not supported", image),
		Hint: "the Dockerfile language of docker/dockerfile:1 is built in; kiln build --allow frontend runs others",
		Err:  &SyntaxError{Image: whole, Command: command},
	}
}

// SyntaxError is a Dockerfile that asks for a frontend which is not built in.
type SyntaxError struct {
	// Image is the image of the frontend, with a digest if there is one, and Command is that with the words after it.
	Image, Command string
}

func (e *SyntaxError) Error() string { return "the frontend " + e.Image + " is not built in" }

// Is makes it a kind of errors.ErrUnsupported.
func (e *SyntaxError) Is(target error) bool { return target == errors.ErrUnsupported }
