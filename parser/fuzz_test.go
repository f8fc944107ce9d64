package parser

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"
)

// FuzzParse compares with moby's own packages: what they take is taken, as what they take it for, unless it is refused for what it may
// cost, and what they refuse is refused, with a line of the text.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := Parse(t.Context(), "Dockerfile", text, linter.New(&linter.Config{}))
		stages, args, want := reference(text)
		if (err == nil) != (want == nil) && !(want == nil && stricter(text)) {
			t.Fatalf("Parse says %v, and moby's packages %v", err, want)
		}
		if err != nil {
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Msg == "" || e.Line < 0 || e.EndLine < e.Line || e.Line > bytes.Count(text, []byte("\n"))+1 {
				t.Errorf("the error is %#v", err)
			}
			return
		}
		if len(got.Stages) != len(stages) || len(got.Args) != len(args) {
			t.Fatalf("there are %d stages and %d arguments, and should be %d and %d", len(got.Stages), len(got.Args), len(stages), len(args))
		}
		for i, stage := range stages {
			if a, b := describe(got.Stages[i]), describe(stage); a != b {
				t.Errorf("stage %d is\n%s\nand should be\n%s", i, a, b)
			}
		}
	})
}

// stricter reports whether a text may be refused that moby's packages take: see limits.go.
func stricter(text []byte) bool {
	return bytes.IndexByte(text, 0) >= 0 || bytes.Count(text, []byte("$")) > maxNested || bytes.Count(bytes.ToUpper(text), []byte("ONBUILD")) > maxOnBuild
}

func seeds(f *testing.F) {
	names, err := filepath.Glob("../testdata/corpus/*.txtar")
	if err != nil || len(names) == 0 {
		f.Fatal("no Dockerfiles", err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		_, dockerfile, _ := strings.Cut(string(text), "-- Dockerfile --\n")
		dockerfile, _, _ = strings.Cut(dockerfile, "\n-- ")
		f.Add([]byte(dockerfile + "\n"))
	}
	for _, s := range []string{
		"\xef\xbb\xbfFROM a\r\nRUN b\r\n", "# escape=`\nFROM a\nRUN b `\n c\n", "# escape=x\n", "FROM a\nRUN <<A <<-'B'\nx\nA\n\tB\n", "FROM a\nCOPY <<A /\n",
		"FROM a\nRUN [\"a\", 'b']\nCMD [ ]\nONBUILD ONBUILD RUN x\n", "FROM a\nENV a b\\\n\n# c\n  d\n", "FROM a AS b AS c", "FROM \x00", "FROM a\nHEALTHCHECK NONE x\n",
	} {
		f.Add([]byte(s))
	}
}

func reference(text []byte) ([]instructions.Stage, []instructions.ArgCommand, error) {
	res, err := moby.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	stages, args, err := instructions.Parse(res.AST, linter.New(&linter.Config{}))
	if err == nil && len(stages) == 0 {
		err = errors.New("no stages")
	}
	return stages, args, err
}

func describe(s instructions.Stage) string {
	var b strings.Builder
	b.WriteString(s.SourceCode)
	for _, c := range s.Commands {
		b.WriteString("\n" + c.Name() + " ")
		if s, ok := c.(interface{ String() string }); ok {
			b.WriteString(s.String())
		}
		for _, r := range c.Location() {
			b.WriteString(" line " + string(rune('0'+r.Start.Line%10)))
		}
	}
	return b.String()
}
