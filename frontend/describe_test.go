package frontend

import (
	"fmt"
	"testing"

	"github.com/kilnbuild/kiln/parser"
)

// TestDescribeTarget: the outline is that of the stage that would be built, whatever images its instructions read from, and an argument
// that several stages declare has the value and the place of the one nearest to the target.
func TestDescribeTarget(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		o    Options
		want string
	}{
		"COPY from an image":  {"FROM base AS app\nARG X=1\nCOPY --from=multi /t /t\n", Options{}, "app X=1:2"},
		"a mount of an image": {"FROM base AS app\nARG X=1\nRUN --mount=from=multi,target=/t true\n", Options{}, "app X=1:2"},
		"a trigger of the base": {
			"FROM onbuild AS app\nARG X=1\n", Options{NamedContexts: map[string]string{"tools": "docker-image://base"}},
			"app WHO=nobody:1 X=1:2",
		},
		"several of a line": {"FROM base\nARG X=1 Y=2 \\\n Z=3\n", Options{}, " X=1:2-3 Y=2:2-3 Z=3:2-3"},
		"a trigger of a stage": {
			"FROM base AS a\nONBUILD ARG X=1\nFROM a AS b\nARG X=2 Y\nFROM a AS c\nCOPY --from=b / /\n", Options{}, "c Y=:4 X=1:5",
		},
		"several COPYs":           {"FROM base\nFROM base\nARG X=1\nCOPY --from=multi /t /t\nCOPY --from=empty / /\n", Options{}, " X=1:3"},
		"an earlier target":       {"FROM base AS a\nARG X=1\nCOPY --from=multi /t /t\nFROM base AS b\n", Options{Target: "a"}, "a X=1:2"},
		"of the target":           {"FROM base AS a\nARG X=1\nFROM a\nARG X=2\n", Options{}, " X=2:4"},
		"of its base":             {"FROM base AS a\nARG X=1\nFROM a AS b\nARG X=2\nFROM b\n", Options{}, " X=2:4"},
		"of its base before COPY": {"FROM base AS a\nARG X=1\nFROM base AS b\nARG X=2\nFROM b\nCOPY --from=a / /\n", Options{}, " X=2:4"},
		"of a stage copied from":  {"FROM base AS a\nARG X=1\nFROM base\nARG X=2\nCOPY --from=a / /\n", Options{}, " X=2:4"},
		"the last of a stage":     {"FROM base\nARG X=1\nARG X=2\n", Options{}, " X=2:3"},
		"given":                   {"FROM base AS a\nARG X=1\nFROM a\nARG X=2\n", Options{BuildArgs: map[string]string{"X": "3"}}, " X=3:4"},
		"a default that another replaced": {
			"ARG A=1\nARG B=$A\nARG B=2\nARG C=$A\nARG C=$C-3\nFROM base\nARG B C\n", Options{}, " A=1:1 B=2:3 C=1-3:5",
		},
		"a stage that is not built": {
			"FROM base AS a\nARG X=1\nFROM base\nARG Y=2\n", Options{}, " Y=2:4",
		},
		"a context for the target": {
			"FROM base AS a\nARG X=1\n", Options{NamedContexts: map[string]string{"a": "docker-image://base"}}, "a",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.BuildPlatform = amd64
			out, err := DescribeTarget(t.Context(), []byte(c.text), c.o, fakeImages{})
			if err != nil {
				t.Fatal(err)
			}
			got := out.Name
			for _, a := range out.Args {
				got += fmt.Sprintf(" %s=%s:%d", a.Name, a.Value, a.Location.Ranges[0].Start.Line)
				for _, r := range a.Location.Ranges[1:] { // one for each line, as BuildKit has them
					got += fmt.Sprintf("-%d", r.End.Line)
				}
			}
			if got != c.want {
				t.Errorf("the outline is %q, want %q", got, c.want)
			}
		})
	}
	_, err := DescribeTarget(t.Context(), []byte("FROM base\nCOPY --from=multi /t /t\n"), Options{BuildPlatform: amd64, Target: "x"}, fakeImages{})
	if _, ok := err.(*parser.Error); !ok {
		t.Errorf("a target that does not exist: error %v", err)
	}
}
