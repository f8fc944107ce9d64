package parser

import (
	"errors"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"
)

func lint(found *[]string) *linter.Linter {
	return linter.New(&linter.Config{Warn: func(rule, _, _, _ string, _ []moby.Range) { *found = append(*found, rule) }})
}

func TestParse(t *testing.T) {
	var found []string
	df, err := Parse(t.Context(), "Dockerfile", []byte("# escape=`\nARG A=1\nFROM $A AS x\nRUN a `\n\n b\nMAINTAINER m\nFROM x\n"), lint(&found))
	if err != nil {
		t.Fatal(err)
	}
	if df.File != "Dockerfile" || df.Escape != '`' || len(df.Args) != 1 || len(df.Stages) != 2 || len(df.Stages[0].Commands) != 2 {
		t.Errorf("%+v", df)
	}
	if start, end := Lines(df.Stages[0].Commands[0].Location()); start != 4 || end != 6 {
		t.Errorf("RUN stands in lines %d to %d", start, end)
	}
	if got := strings.Join(found, " "); got != "NoEmptyContinuation MaintainerDeprecated" {
		t.Errorf("found %s", got)
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "f: the Dockerfile cannot be empty",
		"FROM a\nCPOY a b\n":          "f:2: unknown instruction: CPOY (did you mean COPY?)",
		"FROM a\nWRKDIR b\n":          "f:2: unknown instruction: WRKDIR (did you mean WORKDIR?)",
		"FROM a\nNOTHINGLIKEIT b\n":   "f:2: unknown instruction: NOTHINGLIKEIT",
		"FROM a\nCOPY --form=x a b\n": "f:2: unknown flag: --form (did you mean from?)",
		"FROM a\nHEALTHCHECK --interval=5 CMD x\n": "f:2: time: missing unit in duration \"5\" (a duration has a unit, as 30s or 5m)",
		"FROM a\nHEALTHCHECK --retries=x CMD x\n":  "f:2: \"x\" is not a number",
		"FROM a\nSHELL ['sh', '-c']\n":             "f:2: SHELL requires the arguments to be in JSON form (a list whose strings are in double quotes, as [\"/bin/sh\", \"-c\"])",
		"FROM a\n\nRUN --mount=frm=x y\n":          "",
		"FROM a\nCOPY <<E /\n":                     "f:2: unterminated heredoc (a line with nothing but the word after << ends it)",
		"# escape=`\n# Escape=`\nFROM a":           "f:2: only one escape parser directive can be used",
	} {
		_, err := Parse(t.Context(), "f", []byte(text), lint(new([]string)))
		if got := message(err); got != want {
			t.Errorf("%q:\n got %s\nwant %s", text, got, want)
		}
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestParseTrigger(t *testing.T) {
	at := []moby.Range{{Start: moby.Position{Line: 3}, End: moby.Position{Line: 4}}}
	cmd, err := ParseTrigger("f", "COPY <<E /e\nx\nE", at, lint(new([]string)))
	if err != nil {
		t.Fatal(err)
	}
	if start, end := Lines(cmd.Location()); start != 3 || end != 4 {
		t.Errorf("the trigger stands in lines %d to %d", start, end)
	}
	for _, text := range []string{"", "# check=skip=all", "RUN a\nRUN b", "FROM x", "NO x", "RUN --x y"} {
		_, err := ParseTrigger("f", text, at, lint(new([]string)))
		var e *Error
		if !errors.As(err, &e) || e.Line != 3 || e.EndLine != 4 {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestDirective(t *testing.T) {
	for _, tt := range []struct {
		name, text, value string
		line              int
	}{
		{"syntax", "# syntax=a:1\nFROM x", "a:1", 1},
		{"syntax", "#!/bin/x\n# escape=`\n# SYNTAX = b c\n", "b c", 3},
		{"syntax", "// syntax=c\n{}", "c", 1},
		{"syntax", `{"syntax": "d"}`, "d", 1},
		{"syntax", "FROM x\n# syntax=a:1\n", "", 0},
		{"check", "# check=skip=all\nFROM x", "skip=all", 1},
		{"check", "// check=skip=all\nFROM x", "", 0},
	} {
		if value, line := Directive(tt.name, []byte(tt.text)); value != tt.value || line != tt.line {
			t.Errorf("Directive(%q, %q) = %q, %d", tt.name, tt.text, value, line)
		}
	}
}

func TestAt(t *testing.T) {
	at := []moby.Range{{Start: moby.Position{Line: 3}, End: moby.Position{Line: 3}}}
	if At(nil, "f", at) != nil {
		t.Error("no error has a position")
	}
	cause := errors.New("why")
	err := At(cause, "f", at)
	if !errors.Is(err, cause) || err.Error() != "f:3: why" {
		t.Error(err)
	}
	if again := At(err, "g", []moby.Range{{Start: moby.Position{Line: 9}}}); again != err {
		t.Error("a position was replaced", again)
	}
	if got := message(At(&Error{Msg: "m", Hint: "h"}, "f", at)); got != "f:3: m (h)" {
		t.Error(got)
	}
}
