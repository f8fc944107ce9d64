// Command frontendtool is a frontend for stories of builds: it makes a graph of a file in a language of its own, of a word and its
// arguments a line. "base IMAGE" and "base context:NAME" say what the image begins with; "run COMMAND" runs a command; "copy SRC DEST"
// copies from the build context without what .dockerignore excludes, and "copy SRC DEST NAME" from a named context that is a directory;
// "asked FILE" writes what the frontend was asked, "network FILE" its network interfaces, and "secret ID FILE" a secret; "solve" does what
// there is so far; "open NAME" opens a directory of the client; "warn TEXT" and "fail TEXT" are about their line. "meta KEY VALUE" adds to
// the metadata of the result; "attest TYPE FILE" has a file of it attested of it; "byplatform" returns it under its platform.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

type stdio struct{}

func (stdio) Read(p []byte) (int, error)       { return os.Stdin.Read(p) }
func (stdio) Write(p []byte) (int, error)      { return os.Stdout.Write(p) }
func (stdio) Close() error                     { return nil }
func (stdio) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (stdio) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (stdio) SetDeadline(time.Time) error      { return nil }
func (stdio) SetReadDeadline(time.Time) error  { return nil }
func (stdio) SetWriteDeadline(time.Time) error { return nil }

func main() {
	conn, err := grpc.NewClient("passthrough:///", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return stdio{}, nil }))
	if err != nil {
		panic(err)
	}
	f := &file{client: gateway.NewLLBBridgeClient(conn), opts: map[string]string{}, metadata: map[string][]byte{}}
	for _, v := range os.Environ() {
		if name, option, _ := strings.Cut(v, "="); strings.HasPrefix(name, "BUILDKIT_FRONTEND_OPT_") {
			name, value, _ := strings.Cut(option, "=")
			f.opts[name] = value
		}
	}
	ctx := context.Background()
	ret := &gateway.ReturnRequest{}
	if ret.Result, err = f.build(ctx); err != nil {
		if at, ok := status.FromError(grpcerrors.ToGRPC(ctx, err)); ok {
			ret.Error = at.Proto()
		}
	}
	if _, err := f.client.Return(ctx, ret); err != nil {
		panic(err)
	}
}

// output is what an op makes first.
type output struct {
	ops [][]byte // the last one is the op
	at  map[string]*pb.Locations
}

// file is the file that is built.
type file struct {
	client gateway.LLBBridgeClient
	opts   map[string]string
	text   []byte
	ignore []string
	state  output
	config []byte

	// What the result is besides.
	metadata   map[string][]byte
	attested   []*gateway.Attestation
	byPlatform bool
}

func (f *file) info() *pb.SourceInfo {
	return &pb.SourceInfo{Filename: f.opts["filename"], Data: f.text}
}

// op returns what an op makes of others.
func op(o *pb.Op, line int, inputs ...output) output {
	out := output{at: map[string]*pb.Locations{}}
	for _, in := range inputs {
		out.ops = append(out.ops, in.ops...)
		for d, at := range in.at {
			out.at[d] = at
		}
		o.Inputs = append(o.Inputs, &pb.Input{Digest: string(digest.FromBytes(in.ops[len(in.ops)-1]))})
	}
	o.Platform = &pb.Platform{OS: "linux", Architecture: runtime.GOARCH}
	data, err := o.MarshalVT()
	if err != nil {
		panic(err)
	}
	out.ops = append(out.ops, data)
	out.at[string(digest.FromBytes(data))] = &pb.Locations{Locations: []*pb.Location{{Ranges: ranges(line)}}}
	return out
}

func ranges(line int) []*pb.Range {
	return []*pb.Range{{Start: &pb.Position{Line: int32(line)}, End: &pb.Position{Line: int32(line)}}}
}

func source(id string, attrs map[string]string) output {
	return op(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: id, Attrs: attrs}}}, 1)
}

func local(name, kind string, patterns ...string) output {
	attrs := map[string]string{}
	if len(patterns) > 0 {
		list, _ := json.Marshal(patterns)
		attrs[kind] = string(list)
	}
	return source("local://"+name, attrs)
}

// change is a file op with one action.
func (f *file) change(line int, a *pb.FileAction, from ...output) {
	a.Input, a.SecondaryInput, a.Output = 0, -1, 0
	if f.state.ops == nil {
		a.Input = -1
		if len(from) > 0 {
			a.SecondaryInput = 0
		}
	} else {
		from = append([]output{f.state}, from...)
		if len(from) > 1 {
			a.SecondaryInput = 1
		}
	}
	f.state = op(&pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{a}}}}, line, from...)
}

func (f *file) write(line int, name, text string) {
	f.change(line, &pb.FileAction{Action: &pb.FileAction_Mkfile{
		Mkfile: &pb.FileActionMkFile{Path: name, Mode: 0o644, Data: []byte(text), Timestamp: -1},
	}})
}

func (f *file) run(line int, command string, mounts ...*pb.Mount) {
	exec := &pb.ExecOp{
		Meta:   &pb.Meta{Args: []string{"/bin/sh", "-c", command}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Mounts: append([]*pb.Mount{{Input: 0, Dest: "/", Output: 0}}, mounts...),
	}
	f.state = op(&pb.Op{Op: &pb.Op_Exec{Exec: exec}}, line, f.state)
}

// solve returns a ref to what an op makes.
func (f *file) solve(ctx context.Context, o output) (*gateway.Result, string, error) {
	def := &pb.Definition{Def: slices.Clone(o.ops), Metadata: map[string]*pb.OpMetadata{}}
	last, err := (&pb.Op{Inputs: []*pb.Input{{Digest: string(digest.FromBytes(o.ops[len(o.ops)-1]))}}}).MarshalVT()
	if err != nil {
		return nil, "", err
	}
	def.Def = append(def.Def, last)
	def.Source = &pb.Source{Infos: []*pb.SourceInfo{f.info()}, Locations: o.at}
	resp, err := f.client.Solve(ctx, &gateway.SolveRequest{Definition: def, AllowResultReturn: true})
	if err != nil {
		return nil, "", grpcerrors.FromGRPC(err)
	}
	return resp.Result, resp.Result.GetRef().GetId(), nil
}

// read reads a file of a directory.
func (f *file) read(ctx context.Context, dir output, name string) ([]byte, error) {
	_, ref, err := f.solve(ctx, dir)
	if err != nil {
		return nil, err
	}
	resp, err := f.client.ReadFile(ctx, &gateway.ReadFileRequest{Ref: ref, FilePath: name})
	if err != nil {
		return nil, grpcerrors.FromGRPC(err)
	}
	return resp.Data, nil
}

func (f *file) build(ctx context.Context) (*gateway.Result, error) {
	if id := f.opts["requestid"]; id != "" {
		return answer(id)
	}
	name := f.opts["filename"]
	var err error
	if f.text, err = f.read(ctx, local("dockerfile", pb.AttrFollowPaths, name), name); err != nil {
		return nil, err
	}
	if ignored, err := f.read(ctx, local("context", pb.AttrFollowPaths, ".dockerignore"), ".dockerignore"); err == nil {
		f.ignore = strings.Fields(string(ignored))
	}
	f.config = []byte(`{"os":"linux","architecture":"` + runtime.GOARCH + `"}`)
	for i, line := range strings.Split(string(f.text), "\n") {
		word, rest, _ := strings.Cut(line, " ")
		if err := f.do(ctx, i+1, word, rest); err != nil {
			return nil, err
		}
	}
	r, ref, err := f.solve(ctx, f.state)
	if err != nil {
		return nil, err
	}
	f.metadata["containerimage.config"] = f.config
	r.Metadata = f.metadata
	platform := "linux/" + runtime.GOARCH
	if f.byPlatform {
		r.Result = &gateway.Result_Refs{Refs: &gateway.RefMap{Refs: map[string]*gateway.Ref{platform: {Id: ref}}}}
	}
	for _, a := range f.attested {
		a.Ref = &gateway.Ref{Id: ref}
		r.Attestations = map[string]*gateway.Attestations{platform: {Attestation: f.attested}}
	}
	return r, nil
}

// do does a line.
func (f *file) do(ctx context.Context, line int, word, rest string) error {
	args := strings.Fields(rest)
	switch word {
	case "base":
		return f.base(ctx, rest)
	case "run":
		f.run(line, rest)
	case "secret":
		f.run(line, "cat /run/s > "+args[1], &pb.Mount{
			Input: -1, Dest: "/run/s", Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: args[0], Mode: 0o400},
		})
	case "copy":
		from := local("context", pb.AttrExcludePatterns, f.ignore...)
		if len(args) > 2 {
			name, ok := strings.CutPrefix(f.opts["context:"+args[2]], "local:")
			if !ok {
				return fmt.Errorf("the context %s is no directory: %s", args[2], f.opts["context:"+args[2]])
			}
			from = local(name, "")
		}
		f.change(line, &pb.FileAction{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{
			Src: args[0], Dest: args[1], DirCopyContents: true, CreateDestPath: true, Mode: -1, Timestamp: -1,
		}}}, from)
	case "asked":
		var all []string
		for name, value := range f.opts {
			all = append(all, name+"="+value+"\n")
		}
		slices.Sort(all)
		f.write(line, rest, strings.Join(all, ""))
	case "network":
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		text := ""
		for _, l := range links {
			text += l.Name + "\n"
		}
		f.write(line, rest, text)
	case "meta":
		f.metadata[args[0]] = []byte(args[1])
	case "attest":
		f.attested = append(f.attested, &gateway.Attestation{
			Kind: gateway.AttestationKind_InToto, InTotoPredicateType: args[0], Path: args[1],
		})
	case "byplatform":
		f.byPlatform = true
	case "solve":
		_, ref, err := f.solve(ctx, f.state)
		if err == nil {
			_, err = f.client.Evaluate(ctx, &gateway.EvaluateRequest{Ref: ref})
			err = grpcerrors.FromGRPC(err)
		}
		return err
	case "open":
		_, err := f.read(ctx, local(rest, ""), "x")
		return err
	case "warn":
		last := digest.FromBytes(f.state.ops[len(f.state.ops)-1])
		_, err := f.client.Warn(ctx, &gateway.WarnRequest{Digest: string(last), Short: []byte(rest), Info: f.info(), Ranges: ranges(line)})
		return err
	case "fail":
		return errdefs.WithSource(errors.New(rest), &errdefs.Source{Info: f.info(), Ranges: ranges(line)})
	}
	return nil
}

// base begins with an image.
func (f *file) base(ctx context.Context, name string) error {
	if _, ok := strings.CutPrefix(name, "context:"); ok {
		ref, ok := strings.CutPrefix(f.opts[name], "oci-layout://")
		if !ok {
			return fmt.Errorf("the context %s is no layout: %s", name, f.opts[name])
		}
		store, _, _ := strings.Cut(ref, "@")
		f.state = source("oci-layout://"+ref, map[string]string{pb.AttrOCILayoutStoreID: store})
		return nil
	}
	resp, err := f.client.ResolveImageConfig(ctx, &gateway.ResolveImageConfigRequest{Ref: name})
	if err != nil {
		return grpcerrors.FromGRPC(err)
	}
	f.state, f.config = source("docker-image://"+name, nil), resp.Config
	return nil
}

// answer answers what is asked for in place of a build.
func answer(id string) (*gateway.Result, error) {
	answers := map[string]string{
		"frontend.targets": `{"targets":[{"name":"only","default":true,"description":"what there is"}]}`,
		"frontend.lint": `{"warnings":[{"ruleName":"TooShort","description":"Files should be longer","detail":"it is short",` +
			`"location":{"ranges":[{"start":{"line":2},"end":{"line":2}}]}}],"sources":[{"filename":"Dockerfile"}]}`,
	}
	json, ok := answers[id]
	if !ok {
		return nil, errdefs.NewUnsupportedSubrequestError(id)
	}
	return &gateway.Result{Metadata: map[string][]byte{"result.json": []byte(json), "version": []byte("1.0.0")}}, nil
}
