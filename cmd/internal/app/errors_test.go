package app

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
	"github.com/kilnbuild/kiln/progress"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/solver"
)

func TestPrintError(t *testing.T) {
	dockerfile := report.Dockerfile{Name: "Dockerfile", Text: []byte("FROM busybox\nCOPY a /a\nRUN make\n")}
	var g llb.Graph
	base := g.Add(llb.Scratch{}, llb.Meta{})
	at := func(line int) llb.Location { return llb.Location{File: "Dockerfile", StartLine: line, EndLine: line} }
	run := g.Add(llb.Exec{}, llb.Meta{Place: llb.Place{Step: 2, Steps: 2}, Text: "RUN make", Location: at(3)}, base.Output(0))
	cp := g.Add(llb.File{}, llb.Meta{Place: llb.Place{Step: 1, Steps: 2}, Text: "COPY a /a", Location: at(2)}, base.Output(0))
	nowhere := g.Add(llb.File{Actions: []llb.Action{{}}}, llb.Meta{Text: "made up"}, base.Output(0))
	failed := errors.New(`process "make" did not complete successfully: exit code: 2`)

	// Another step of the same name failed too.
	failures := &progress.Failures{}
	twin := g.Add(llb.Exec{Args: []string{"x"}}, run.Meta(), base.Output(0))
	for _, step := range []struct {
		v   *llb.Vertex
		log string
	}{{twin, "no\n"}, {run, "one\ntwo\n"}} {
		for _, body := range []events.Body{
			events.Started{Place: step.v.Meta().Place, Text: step.v.Meta().Text}, events.Log{Stream: 1, Data: []byte(step.log)}, events.Finished{Error: "no"},
		} {
			failures.Event(events.Event{Vertex: step.v.Digest(), Body: body})
		}
	}

	const runExcerpt = `Dockerfile:3
--------------------
   1 |     FROM busybox
   2 |     COPY a /a
   3 | >>> RUN make
--------------------
`
	for _, tc := range []struct {
		name   string
		err    error
		status int
		want   string
	}{
		{"usage", UsageErrorf("--x: bad\nvalue \x1b[2J"), 2, "kiln: --x: bad value \n"},
		{"internal", &InternalError{errors.New("open store: no")}, 125, "kiln: open store: no\n"},
		{"plain", errors.New("push https://u:canary@h: no"), 1, "kiln: push https://xxxxx@h: no\n"},
		{"several", errors.Join(errors.New("a"), errors.New("b")), 1, "kiln: a\nkiln: b\n"},
		{
			"run", &BuildError{dockerfile: dockerfile, err: &ProgressError{
				Err:      &solver.VertexError{Vertex: run, Err: failed},
				Failures: failures,
			}}, 1,
			`kiln: Dockerfile:3: process "make" did not complete successfully: exit code: 2` + "\n" + runExcerpt + "------\n > [2/2] RUN make:\none\ntwo\n------\n",
		},
		{"copy", &solver.VertexError{Vertex: cp, Err: errors.New(`"/a" not found`)}, 1, "kiln: [1/2] COPY a /a: \"/a\" not found\nDockerfile:2\n"},
		{"step without a place", &solver.VertexError{Vertex: nowhere, Err: errors.New("no")}, 1, "kiln: made up: no\n"},
		{
			"parse", &BuildError{dockerfile: dockerfile, err: &parser.Error{File: "Dockerfile", Line: 3, EndLine: 3, Msg: "unknown instruction: RNU", Hint: "did you mean RUN?"}}, 2,
			"kiln: Dockerfile:3: unknown instruction: RNU (did you mean RUN?)\n" + runExcerpt,
		},
		{
			"image", &parser.Error{File: "Dockerfile", Line: 1, EndLine: 1, Msg: "not found", Err: &registry.Error{}}, 1,
			"kiln: Dockerfile:1: not found\nDockerfile:1\n",
		},
		{"input", &input.Error{Err: errors.New("no Dockerfile")}, 2, "kiln: no Dockerfile\n"},
		{"wrapped", fmt.Errorf("x: %w", UsageErrorf("y")), 2, "kiln: x: y\n"},
		{"found", ErrFound, 1, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			New(nil, &out).PrintError(tc.err)
			if out.String() != tc.want {
				t.Errorf("got:\n%s\nwant:\n%s", out.String(), tc.want)
			}
			if got := ExitStatus(tc.err); got != tc.status {
				t.Errorf("exit status %d, want %d", got, tc.status)
			}
		})
	}
}
