package apierr

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/files"
)

// received returns an error as a client of BuildKit has it after it has crossed the socket.
func received(err error) error { return grpcerrors.FromGRPC(Status(context.Background(), err).Err()) }

const dockerfile = "FROM scratch\nRUN a && \\\n  b\n"

func build() *Build {
	return &Build{
		Source: func(name string) *pb.SourceInfo {
			return &pb.SourceInfo{Filename: name, Language: Language, Data: []byte(dockerfile), Definition: &pb.Definition{}}
		},
		Digests: func(llb.Digest) []string { return []string{"sha256:" + strings.Repeat("a", 64)} },
	}
}

// A client gets the words, the vertex, the exit code and the lines of a step that failed.
func TestStep(t *testing.T) {
	var g llb.Graph
	v := g.Add(llb.Exec{}, llb.Meta{Text: "RUN a && b", Location: llb.Location{File: "Dockerfile", StartLine: 2, EndLine: 3}},
		g.Add(llb.Scratch{}, llb.Meta{}).Output(0))
	failed := &solver.VertexError{Vertex: v, Err: &execute.ExitError{Args: []string{"/bin/sh", "-c", "a && b"},
		Status: sandbox.Status{ExitCode: 3}}}
	err := received(build().Error(fmt.Errorf("build: %w", failed)))
	if want := `process "/bin/sh -c a && b" did not complete successfully: exit code: 3`; !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %q", err)
	}
	var vertex *errdefs.VertexError
	if !errors.As(err, &vertex) || vertex.Digest != "sha256:"+strings.Repeat("a", 64) {
		t.Errorf("the vertex is %v", vertex)
	}
	var exit *gateway.ExitError
	if !errors.As(err, &exit) || exit.ExitCode != 3 {
		t.Errorf("the exit code is %v", exit)
	}
	sources := errdefs.Sources(err)
	if len(sources) != 1 || len(sources[0].Ranges) != 2 {
		t.Fatalf("the sources are %v", sources)
	}
	var excerpt strings.Builder
	if err := sources[0].Print(&excerpt); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Dockerfile:2\n", "   2 | >>> RUN a && \\\n", "   3 | >>>   b\n"} {
		if !strings.Contains(excerpt.String(), want) {
			t.Errorf("the excerpt lacks %q:\n%s", want, excerpt.String())
		}
	}
}

// parse returns the error that lowering a Dockerfile has.
func parse(t *testing.T, text string, args map[string]string) error {
	t.Helper()
	_, err := frontend.Build(context.Background(), []byte(text), frontend.Options{BuildPlatform: llb.Host(), BuildArgs: args}, nil)
	if err == nil {
		t.Fatalf("no error for %q", text)
	}
	return err
}

// The messages are those that clients of BuildKit, and its tests, look for.
func TestWords(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{parse(t, "FROM scratch\nBADCMD\n", nil), "dockerfile parse error on line 2: unknown instruction: BADCMD"},
		{parse(t, "FROM scratch\nFNTRYPOINT x\n", nil),
			"dockerfile parse error on line 2: unknown instruction: FNTRYPOINT (did you mean ENTRYPOINT?)"},
		{parse(t, "FROM --platform=$BULIDPLATFORM scratch\n", nil),
			"empty platform value from expression $BULIDPLATFORM (did you mean BUILDPLATFORM?)"},
		{
			parse(t, "ARG MY_ARCH=amd64\nFROM --platform=linux/${MYARCH} busybox\n", nil),
			`failed to parse platform linux/${MYARCH}: "" is an invalid component of "linux/": platform specifier component must match ` +
				`"^[A-Za-z0-9_.-]+$": invalid argument (did you mean MY_ARCH?)`,
		},
		{
			parse(t, "FROM scratch AS a\nFROM scratch\nARG x\nCOPY --from=$x / /\n", nil),
			"variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
		},
		{parse(t, "FROM scratch\nRUN --network=host true\n", nil), "RUN --network=host: entitlement network.host is not allowed"},
		{parse(t, "FROM scratch\nRUN --security=insecure true\n", nil), "RUN --security=insecure: entitlement security.insecure is not allowed"},
		{&execute.SecretError{ID: "mysecret"}, "secret mysecret: not found"},
		{&files.NotFoundError{Path: "notexist"},
			`failed to compute cache key: failed to calculate checksum of ref source: "/notexist": not found: ` +
				"lstat /notexist: no such file or directory"},
		{fmt.Errorf("x: %w", context.Canceled), "context canceled"},
		{errors.New("anything else"), "anything else"},
		{errors.Join(status.Error(codes.NotFound, "not there"), nil), "not there"},
		{&parser.Error{File: "Dockerfile", Line: 3, Msg: "wrong", Hint: "do this"}, "wrong (do this)"},
	} {
		if got := Text(c.err); got != c.want {
			t.Errorf("%v\nis   %q\nwant %q", c.err, got, c.want)
		}
	}
	for want, err := range map[string]error{
		"invalid SOURCE_DATE_EPOCH: not-a-timestamp": parse(t, "FROM scratch\n", map[string]string{"SOURCE_DATE_EPOCH": "not-a-timestamp"}),
		"expected hex commit hash":                   parse(t, "FROM scratch\nADD --checksum=foobar https://example.com/r.git#v1 /d\n", nil),
		"invalid checksum":                           parse(t, "FROM scratch\nADD --checksum=foobar https://example.com/x /d\n", nil),
	} {
		if got := Text(err); !strings.Contains(got, want) {
			t.Errorf("%v is %q, and lacks %q", err, got, want)
		}
	}
}

// A fault of a Dockerfile comes with its line, and without a name of a status that clients would show.
func TestDockerfile(t *testing.T) {
	err := received(build().Error(parse(t, "FROM scratch\nCOPY --foo=bar / /\n", nil)))
	sources := errdefs.Sources(err)
	if len(sources) != 1 || sources[0].Ranges[0].Start.Line != 2 || sources[0].Info.Definition == nil {
		t.Errorf("the sources are %v", sources)
	}
	if status.Code(err) != codes.Unknown || !strings.HasPrefix(err.Error(), "dockerfile parse error") {
		t.Errorf("the error is %q", err)
	}
}

// No panic crosses the socket.
func TestPanics(t *testing.T) {
	reported := 0
	report := func(any, []byte) { reported++ }
	_, err := Unary(report)(context.Background(), nil, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) { panic("oops") })
	if status.Code(err) != codes.Internal || reported != 1 || strings.Contains(err.Error(), "goroutine") {
		t.Errorf("got %v", err)
	}
	_, err = Unary(report)(context.Background(), nil, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) {
		return nil, status.Error(codes.NotFound, "not there")
	})
	if status.Code(err) != codes.NotFound {
		t.Errorf("the status of an error is lost: %v", err)
	}
}

// An error crosses the socket however large what it is about is.
func TestLargeErrors(t *testing.T) {
	failed := func(string, *solver.VertexError) *errdefs.Solve {
		return &errdefs.Solve{InputIDs: []string{strings.Repeat("x", 20<<20)}}
	}
	var g llb.Graph
	v := g.Add(llb.Scratch{}, llb.Meta{})
	for _, err := range []error{
		errors.New(strings.Repeat("é", 10<<20)),
		status.Error(codes.NotFound, strings.Repeat("x", 20<<20)),
		(&Build{Failed: failed}).Error(&solver.VertexError{Vertex: v, Err: errors.New("failed")}),
	} {
		_, got := Unary(nil)(context.Background(), nil, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) { return nil, err })
		if n := proto.Size(status.Convert(got).Proto()); n > maxStatus || len(got.Error()) == 0 {
			t.Errorf("a status of %d bytes", n)
		}
	}
}
