package records

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	control "github.com/moby/buildkit/api/services/control"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
)

// open returns the records in a root directory.
func open(t *testing.T, root string, keep history.Retention) *Records {
	tmp := t.TempDir()
	return New(history.Open(root, tmp, keep), tmp, func(err error) { t.Error(err) })
}

// list returns the events of the history as it is.
func list(t *testing.T, r *Records, req *control.BuildHistoryRequest) (all []*control.BuildHistoryEvent) {
	t.Helper()
	req.EarlyExit = true
	if err := r.Listen(t.Context(), req, func(e *control.BuildHistoryEvent) error {
		all = append(all, e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func refs(all []*control.BuildHistoryEvent) string {
	var s []string
	for _, e := range all {
		s = append(s, fmt.Sprintf("%s:%s", e.Type, e.Record.Ref))
	}
	return strings.Join(s, " ")
}

// do does a build of a step that prints something, and fails if err is not nil.
func do(t *testing.T, r *Records, req Request, res Result) {
	t.Helper()
	b, err := r.Begin(req)
	if err != nil {
		t.Fatal(err)
	}
	s := events.New(b.Log())
	task := s.Task(llb.Place{}, "RUN "+req.Ref)
	task.Log(1, []byte("hello from "+req.Ref+"\n"))
	task.Done(res.Err)
	b.End(t.Context(), res)
}

func blobOf(t *testing.T, r *Records, d *control.Descriptor) []byte {
	t.Helper()
	data, err := content.ReadBlob(t.Context(), r.Content(), ocispec.Descriptor{Digest: digest.Digest(d.Digest), Size: d.Size,
		MediaType: d.MediaType})
	if err != nil {
		t.Fatal(err)
	}
	if digest.FromBytes(data).String() != d.Digest {
		t.Errorf("the blob %s has other bytes", d.Digest)
	}
	return data
}

// A build is in the history while it goes on and after it has ended, also for another process, with what happened and its blobs.
func TestRecord(t *testing.T) {
	root := t.TempDir()
	r := open(t, root, history.Default)
	b, err := r.Begin(Request{Ref: "one", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{
		"target": "x", "context": "https://user:canary@example.com/r.git",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Begin(Request{Ref: "one"}); !errors.As(err, new(*RefError)) {
		t.Errorf("a second build of one ref: %v", err)
	}
	if got := refs(list(t, r, &control.BuildHistoryRequest{ActiveOnly: true})); got != "STARTED:one" {
		t.Errorf("the history has %q", got)
	}
	var g llb.Graph
	v := g.Add(llb.Exec{}, llb.Meta{Text: "RUN x"}, g.Add(llb.Scratch{}, llb.Meta{}).Output(0))
	s := events.New(b.Log())
	task := s.Vertex(v)
	task.Log(1, []byte("hello\n"))
	failure := (&apierr.Build{}).Error(&solver.VertexError{Vertex: v, Err: &execute.SecretError{ID: "t"}})
	task.Done(failure)
	manifest := []byte(`{"config":{"digest":"sha256:aa","size":2}}`)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	b.End(t.Context(), Result{
		Err: failure, Response: map[string]string{"k": "v"}, Outputs: map[int]ocispec.Descriptor{1: desc},
		Open: func(d ocispec.Descriptor) (io.ReadCloser, error) {
			if d.Digest != desc.Digest {
				return nil, os.ErrNotExist
			}
			return io.NopCloser(bytes.NewReader(manifest)), nil
		},
		Attestations: []Attestation{{Platform: "linux/amd64", MediaType: "application/vnd.in-toto+json", PredicateType: "p", Data: []byte("{}")}},
	})

	for who, r := range map[string]*Records{"this": r, "another": open(t, root, history.Default)} {
		all := list(t, r, &control.BuildHistoryRequest{Ref: "one"})
		if refs(all) != "COMPLETE:one" {
			t.Fatalf("%s process sees %q", who, refs(all))
		}
		rec := all[0].Record
		if strings.Contains(fmt.Sprint(rec), "canary") {
			t.Errorf("%s process: the record has a password", who)
		}
		if rec.FrontendAttrs["target"] != "x" || rec.ExporterResponse["k"] != "v" || rec.NumTotalSteps != 1 || rec.NumCompletedSteps != 1 {
			t.Errorf("%s process: the record is %v", who, rec)
		}
		if rec.Error.GetMessage() != "secret t: not found" || len(rec.Error.Details) != 0 || rec.ExternalError.GetMediaType() != errorType {
			t.Errorf("%s process: the error is %v", who, rec.Error)
		}
		var st spb.Status
		if err := proto.Unmarshal(blobOf(t, r, rec.ExternalError), &st); err != nil || st.Message != rec.Error.Message || len(st.Details) == 0 {
			t.Errorf("%s process: the external error is %v, %v", who, &st, err)
		}
		if trace := string(blobOf(t, r, rec.Trace)); !strings.Contains(trace, `"Name": "RUN x"`) || !strings.Contains(trace, `"Name": "build"`) {
			t.Errorf("%s process: the trace is %s", who, trace)
		}
		if got := blobOf(t, r, rec.Result.Results[1]); string(got) != string(manifest) {
			t.Errorf("%s process: the manifest is %q", who, got)
		}
		if got := blobOf(t, r, rec.Results["linux/amd64"].Attestations[0]); string(got) != "{}" {
			t.Errorf("%s process: the attestation is %q", who, got)
		}
		var printed []byte
		if err := r.Status(t.Context(), "one", func(m *control.StatusResponse) error {
			for _, l := range m.Logs {
				printed = append(printed, l.Msg...)
			}
			return nil
		}); err != nil || string(printed) != "hello\n" {
			t.Errorf("%s process: the step printed %q, %v", who, printed, err)
		}
	}
}

// A question may come before its build. Builds without a record can be asked about for a while, and are in no list.
func TestEarly(t *testing.T) {
	r := open(t, t.TempDir(), history.Default)
	got := make(chan string)
	go func() {
		var printed []byte
		err := r.Status(context.Background(), "soon", func(m *control.StatusResponse) error {
			for _, l := range m.Logs {
				printed = append(printed, l.Msg...)
			}
			return nil
		})
		got <- fmt.Sprint(string(printed), err)
	}()
	do(t, r, Request{Ref: "other", Internal: true}, Result{})
	do(t, r, Request{Ref: "soon", Internal: true}, Result{})
	if got := <-got; got != "hello from soon\n<nil>" {
		t.Errorf("got %q", got)
	}
	if all := list(t, r, &control.BuildHistoryRequest{}); len(all) != 0 {
		t.Errorf("the history has %s", refs(all))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Status(ctx, "never", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Records are pinned, deleted and told of; what is pinned outlives others.
func TestUpdate(t *testing.T) {
	root := t.TempDir()
	r := open(t, root, history.Retention{Age: 0, Entries: 2})
	do(t, r, Request{Ref: "a"}, Result{})
	ctx, cancel := context.WithCancel(t.Context())
	type told struct {
		text string
		err  error
	}
	happened := make(chan told, 100)
	go func() {
		err := r.Listen(ctx, &control.BuildHistoryRequest{}, func(e *control.BuildHistoryEvent) error {
			happened <- told{text: fmt.Sprintf("%s:%s:%v", e.Type, e.Record.Ref, e.Record.Pinned)}
			return nil
		})
		happened <- told{err: err}
	}()
	if first := <-happened; first.text != "COMPLETE:a:false" {
		t.Errorf("a listener was told %v", first)
	}
	for _, req := range []*control.UpdateBuildHistoryRequest{{Ref: "a", Finalize: true}, {Ref: "a", Pinned: true}} {
		if err := r.Update(req); err != nil {
			t.Fatal(err)
		}
	}
	do(t, r, Request{Ref: "b"}, Result{})
	if err := r.Update(&control.UpdateBuildHistoryRequest{Ref: "b", Delete: true}); err != nil {
		t.Fatal(err)
	}
	if err := r.Update(&control.UpdateBuildHistoryRequest{Ref: "b", Delete: true}); !errors.As(err, new(*NotFoundError)) {
		t.Errorf("deleting what is not there: %v", err)
	}
	for _, want := range []string{"COMPLETE:a:true", "STARTED:b:false", "COMPLETE:b:false", "DELETED:b:false"} {
		if got := <-happened; got.text != want {
			t.Errorf("a listener was told %v, not %s", got, want)
		}
	}
	cancel()
	if end := <-happened; !errors.Is(end.err, context.Canceled) {
		t.Errorf("the listener ended with %v", end.err)
	}
	for _, ref := range []string{"c", "d", "e", "f"} {
		do(t, r, Request{Ref: ref}, Result{})
	}
	r.history.Prune()
	if got := refs(list(t, r, &control.BuildHistoryRequest{})); got != "COMPLETE:a COMPLETE:f" {
		t.Errorf("the history has %s", got)
	}
	if err := r.Update(&control.UpdateBuildHistoryRequest{Ref: "a"}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range list(t, r, &control.BuildHistoryRequest{}) {
		if e.Record.Pinned {
			n++
		}
		if err := r.Update(&control.UpdateBuildHistoryRequest{Ref: e.Record.Ref, Delete: true}); err != nil {
			t.Fatal(err)
		}
	}
	if n != 0 {
		t.Errorf("%d builds are pinned", n)
	}
	if err := r.Content().Walk(t.Context(), func(i content.Info) error { return fmt.Errorf("the blob %s is left", i.Digest) }); err != nil {
		t.Error(err)
	}
}

func TestFilters(t *testing.T) {
	epoch := time.Now().Add(-24 * time.Hour)
	all := []*control.BuildHistoryRecord{
		{Ref: "foo123", CreatedAt: timestamppb.New(epoch), CompletedAt: timestamppb.New(epoch.Add(time.Minute))},
		{
			Ref: "bar456", CreatedAt: timestamppb.New(epoch.Add(time.Hour)),
			FrontendAttrs: map[string]string{"context": "https://github.com/user/repo.git#abcdef123"},
		},
		{
			Ref: "foo789", FrontendAttrs: map[string]string{"vcs:source": "testrepo"}, CreatedAt: timestamppb.New(epoch.Add(2 * time.Hour)),
			CompletedAt: timestamppb.New(epoch.Add(2*time.Hour + 10*time.Minute)), Error: &spb.Status{Message: "no"},
		},
	}
	for _, c := range []struct{ filters, want string }{
		{"", "foo123 bar456 foo789"},
		{"ref==foo", ""},
		{"ref~=foo", "foo123 foo789"},
		{"repository!=testrepo", "foo123 bar456"},
		{"repository==https://github.com/user/repo.git", "bar456"},
		{"repository!=testrepo,ref~=foo", "foo123"},
		{"completedAt>23h", "foo789"},
		{"startedAt<23h", "foo123"},
		{"startedAt<=23h", "foo123 bar456"},
		{"duration>5m", "foo789"},
		{"status==error", "foo789"},
		{"status==running", "bar456"},
		{"startedAt>=23h completedAt>22h", "bar456 foo789"},
		{"startedAt>24h,ref~=foo", "foo789"},
	} {
		match, err := parseFilters(strings.Fields(c.filters))
		if err != nil {
			t.Errorf("%s: %v", c.filters, err)
			continue
		}
		var got []string
		for _, rec := range all {
			if match(rec) {
				got = append(got, rec.Ref)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s matches %v, not %s", c.filters, got, c.want)
		}
	}
	for _, bad := range []string{"ref+foo", "startedAt>soon", "duration<x", strings.Repeat("x", maxFilter+1)} {
		if _, err := parseFilters([]string{bad}); !errors.As(err, new(*QueryError)) {
			t.Errorf("%.20s: %v", bad, err)
		}
	}
}

// A file that is not whole is no record, and ends nothing.
func TestDamaged(t *testing.T) {
	root := t.TempDir()
	r := open(t, root, history.Default)
	do(t, r, Request{Ref: "a"}, Result{})
	do(t, r, Request{Ref: "b"}, Result{})
	ids, err := r.history.Recorded()
	if err != nil || len(ids) != 2 {
		t.Fatal(ids, err)
	}
	slices.Sort(ids)
	f, err := r.history.OpenRecord(ids[0])
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		cut := whole[:n]
		if n > len(whole)/2 && n < len(whole)-40 {
			continue
		}
		if err := os.WriteFile(f.Name(), cut, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := refs(list(t, open(t, root, history.Default), &control.BuildHistoryRequest{})); got != "COMPLETE:b" {
			t.Fatalf("cut after %d bytes, the history has %s", n, got)
		}
	}
}
