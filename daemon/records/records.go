// Package records is the history of the builds that clients have asked for, as BuildKit's API has it: what was asked, what came of it, and
// blobs of what happened, of the error and of a trace. A record lies beside the events of its build in kiln's own history, and is removed
// with them. The package also answers what the root directory keeps, and has it removed.
package records

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/daemon/status"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/internal/termtext"
)

const (
	// maxRef bounds the ref of a build, in bytes.
	maxRef = 256
	// waitForBuild is how long a question about a build may come before the build itself.
	waitForBuild = 10 * time.Second
	// lingering is how many builds that are not recorded can be asked about after they have ended.
	lingering = 8
)

// mediaTypes of blobs.
const (
	errorType = "application/vnd.googleapis.google.rpc.status+proto"
	traceType = "application/vnd.buildkit.otlp.json.v0"
)

// Records are the records of a root directory. Their methods may be called from several goroutines.
type Records struct {
	history *history.History
	tmp     string
	// warn is told what could not be recorded.
	warn func(error)

	mu     sync.Mutex
	active map[string]*Build // by ref
	// ended are builds that are not recorded, the last one last.
	ended []*Build
	// began is closed when there is another build.
	began chan struct{}
	index map[string]*entry // by the ID of the build
	subs  map[*subscriber]struct{}
}

// New returns the records that a history has. Its files are written by way of the directory tmp. warn is told of builds that cannot be
// recorded, which is no failure of theirs; it may be nil.
func New(h *history.History, tmp string, warn func(error)) *Records {
	if warn == nil {
		warn = func(error) {}
	}
	return &Records{
		history: h, tmp: tmp, warn: warn, active: map[string]*Build{}, began: make(chan struct{}), index: map[string]*entry{},
		subs: map[*subscriber]struct{}{},
	}
}

// Request is what a client asks for, as its record has it.
type Request struct {
	// Ref is the client's name of the build.
	Ref string
	// Internal says that there is no record.
	Internal      bool
	Frontend      string
	FrontendAttrs map[string]string
	Exporters     []*control.Exporter
	// TraceParent is the client's span that the build is part of, as W3C's Trace Context has it; "" for none.
	TraceParent string
}

// RefError is a ref that a client cannot give to a build.
type RefError struct{ Ref, Why string }

func (e *RefError) Error() string { return fmt.Sprintf("the build's ref %.64q %s", e.Ref, e.Why) }

// Code implements what package grpcerrors looks for.
func (e *RefError) Code() codes.Code { return codes.InvalidArgument }

// Build is a build that goes on.
type Build struct {
	records *Records
	request Request
	log     *status.Log
	created time.Time
	// dropped says that a client has deleted the record that is not there yet.
	dropped bool
	// parent is the client's span that the build is part of, or noParent, and spans are those of its trace that clients have added.
	parent   spanContext
	spans    []span
	spanSize int
}

// Begin begins a build. Its End must be called. The error is a *RefError.
func (r *Records) Begin(req Request) (*Build, error) {
	switch {
	case req.Ref == "":
		return nil, &RefError{req.Ref, "is empty"}
	case len(req.Ref) > maxRef:
		return nil, &RefError{req.Ref, fmt.Sprintf("is longer than %d bytes", maxRef)}
	case !utf8.ValidString(req.Ref):
		return nil, &RefError{req.Ref, "is not text"}
	}
	req.FrontendAttrs = redacted(req.FrontendAttrs)
	b := &Build{records: r, request: req, created: time.Now(), parent: parseParent(req.TraceParent)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active[req.Ref] != nil {
		return nil, &RefError{req.Ref, "is that of a build that goes on"}
	}
	b.log = status.NewLog(r.tmp)
	r.active[req.Ref] = b
	close(r.began)
	r.began = make(chan struct{})
	if b.recorded() {
		r.publish(&control.BuildHistoryEvent{Type: control.BuildHistoryEventType_STARTED, Record: b.begun()})
	}
	return b, nil
}

// redacted returns attributes without the users and passwords of URLs in them: every client can read the history.
func redacted(attrs map[string]string) map[string]string {
	out := make(map[string]string, len(attrs))
	for k, v := range attrs {
		out[k] = termtext.Redact(v)
	}
	return out
}

// recorded reports whether the build is going to have a record.
func (b *Build) recorded() bool { return !b.request.Internal && !b.records.history.Off() }

// begun returns the record of a build that goes on.
func (b *Build) begun() *control.BuildHistoryRecord {
	return &control.BuildHistoryRecord{
		Ref: b.request.Ref, Frontend: b.request.Frontend, FrontendAttrs: b.request.FrontendAttrs, Exporters: b.request.Exporters,
		CreatedAt: timestamppb.New(b.created),
	}
}

// Log is what happens in the build.
func (b *Build) Log() *status.Log { return b.log }

// Attestation is a statement about a result that only the record has.
type Attestation struct {
	// Platform is that of the result; "" for the only one.
	Platform  string
	MediaType string
	// PredicateType says what the statement is.
	PredicateType string
	Data          []byte
}

// Result is how a build has ended.
type Result struct {
	// ID is that of the build in kiln's history; "" for one that is not there.
	ID string
	// Err is why it failed, as the client gets it.
	Err error
	// Response is what the client is told of its outputs.
	Response map[string]string
	// Outputs are the images that were made, by the number of the output. Open opens a blob of one; it may be nil.
	Outputs      map[int]ocispec.Descriptor
	Open         func(ocispec.Descriptor) (io.ReadCloser, error)
	Attestations []Attestation
}

// End ends the build: its Log comes to an end, and its record is written.
func (b *Build) End(ctx context.Context, res Result) {
	b.log.Close()
	r := b.records
	rec := b.begun()
	rec.CompletedAt = timestamppb.Now()
	var kept *entry
	if b.recorded() {
		var err error
		if kept, err = b.write(ctx, rec, res); err != nil {
			r.warn(err)
		}
	}
	r.mu.Lock()
	delete(r.active, b.request.Ref)
	if kept != nil && b.dropped {
		_, err := r.history.Remove(kept.id)
		if err != nil {
			r.warn(err)
		}
		kept = nil
	}
	if kept != nil {
		r.replace(kept)
		r.publish(&control.BuildHistoryEvent{Type: control.BuildHistoryEventType_COMPLETE, Record: rec})
	}
	release := []*Build{b}
	if kept == nil {
		r.ended = append(r.ended, b)
		release = r.ended[:max(0, len(r.ended)-lingering)]
		r.ended = slices.Clone(r.ended[len(release):])
	}
	r.mu.Unlock()
	for _, old := range release {
		old.log.Release()
	}
}

// replace puts an entry into the index, in place of earlier builds of the same ref. r.mu is held.
func (r *Records) replace(e *entry) {
	for id, other := range r.index {
		if other.ref == e.ref && id != e.id {
			if _, err := r.history.Remove(id); err != nil {
				r.warn(err)
			}
			delete(r.index, id)
		}
	}
	r.index[e.id] = e
}

// write writes the record, which it completes.
func (b *Build) write(ctx context.Context, rec *control.BuildHistoryRecord, res Result) (*entry, error) {
	summary := b.log.Summary()
	rec.NumTotalSteps, rec.NumCompletedSteps = int32(summary.Total), int32(summary.Completed)
	rec.NumCachedSteps, rec.NumWarnings = int32(summary.Cached), int32(summary.Warnings)
	rec.ExporterResponse = res.Response
	id := res.ID
	if id == "" {
		id = history.NewID()
	}
	e := &entry{id: id, ref: rec.Ref}
	b.records.mu.Lock()
	spans := b.spans
	b.records.mu.Unlock()
	err := b.records.history.WriteRecord(id, func(w io.Writer) error {
		f := newFile(w)
		var err error
		add := func(mediaType string, write func(io.Writer) error) *control.Descriptor {
			if err != nil {
				return nil
			}
			var d *control.Descriptor
			d, err = f.blob(mediaType, write)
			return d
		}
		rec.Logs = add(status.MediaType, func(w io.Writer) error {
			_, err := b.log.WriteTo(w)
			return err
		})
		rec.Trace = add(traceType, func(w io.Writer) error { return writeTrace(w, rec, b.log.Spans(), b.parent, spans) })
		if res.Err != nil {
			failure := apierr.Status(ctx, res.Err).Proto()
			rec.ExternalError = add(errorType, func(w io.Writer) error {
				data, err := proto.Marshal(failure)
				if err == nil {
					_, err = w.Write(data)
				}
				return err
			})
			failure.Details = nil
			rec.Error = failure
		}
		for _, a := range res.Attestations {
			d := add(a.MediaType, func(w io.Writer) error {
				_, err := w.Write(a.Data)
				return err
			})
			if d != nil {
				d.Annotations = map[string]string{"in-toto.io/predicate-type": a.PredicateType}
				info := result(rec, a.Platform)
				info.Attestations = append(info.Attestations, d)
			}
		}
		for _, i := range slices.Sorted(maps.Keys(res.Outputs)) {
			desc := res.Outputs[i]
			info := result(rec, "")
			if info.Results == nil {
				info.Results = map[int64]*control.Descriptor{}
			}
			d := &control.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest.String(), Size: desc.Size, Annotations: desc.Annotations}
			info.Results[int64(i)] = d
			if info.ResultDeprecated == nil {
				info.ResultDeprecated = d
			}
			if res.Open != nil && err == nil {
				err = f.image(desc, res.Open)
			}
		}
		if err != nil {
			return err
		}
		e.blobs = f.blobs
		return f.end(rec)
	})
	return e, err
}

// result returns what a record has of a result.
func result(rec *control.BuildHistoryRecord, platform string) *control.BuildResultInfo {
	if platform == "" {
		if rec.Result == nil {
			rec.Result = &control.BuildResultInfo{}
		}
		return rec.Result
	}
	if rec.Results == nil {
		rec.Results = map[string]*control.BuildResultInfo{}
	}
	if rec.Results[platform] == nil {
		rec.Results[platform] = &control.BuildResultInfo{}
	}
	return rec.Results[platform]
}

// entry is a record that has been written.
type entry struct {
	id, ref string
	blobs   map[digest.Digest]blob
}

// refresh looks which records there are: others write and remove them too. r.mu is held.
func (r *Records) refresh() {
	ids, err := r.history.Recorded()
	if err != nil {
		r.warn(err)
		return
	}
	there := map[string]bool{}
	for _, id := range ids {
		there[id] = true
		if r.index[id] != nil {
			continue
		}
		e, _, err := r.open(id)
		if err != nil {
			e = &entry{id: id} // it is damaged, or just gone, and of no ref
		}
		r.index[id] = e
	}
	maps.DeleteFunc(r.index, func(id string, _ *entry) bool { return !there[id] })
}

// open reads a record.
func (r *Records) open(id string) (*entry, *control.BuildHistoryRecord, error) {
	f, err := r.history.OpenRecord(id)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	rec, blobs, err := readFile(f)
	if err != nil {
		return nil, nil, fmt.Errorf("read the record of build %s: %w", id, err)
	}
	if rec.Pinned = r.history.Pinned(id); rec.Pinned {
		rec.Generation++
	}
	return &entry{id: id, ref: rec.Ref, blobs: blobs}, rec, nil
}

// of returns the record of a ref; false if there is none. r.mu is held.
func (r *Records) of(ref string) (*entry, bool) {
	r.refresh()
	for _, e := range r.index {
		if e.ref == ref && ref != "" {
			return e, true
		}
	}
	return nil, false
}

// Status calls send with what happens in a build from its beginning on, until it has ended. The build may be one of the history, or begin
// soon. Of one that nobody knows the error is an *errdefs.UnknownJobError.
func (r *Records) Status(ctx context.Context, ref string, send func(*control.StatusResponse) error) error {
	timeout := time.NewTimer(waitForBuild)
	defer timeout.Stop()
	for {
		log, began, err := r.find(ctx, ref, send)
		switch {
		case log != nil:
			defer log.Release()
			return log.Read(ctx, send)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		select {
		case <-began:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timeout.C:
			return errdefs.NewUnknownJobError(ref)
		}
	}
}

// find returns the Log of a build, to be released, or replays that of one of the history. Where there is none, the error is fs.ErrNotExist,
// and began is closed when there is another build.
func (r *Records) find(ctx context.Context, ref string, send func(*control.StatusResponse) error) (*status.Log, <-chan struct{}, error) {
	r.mu.Lock()
	began := r.began
	b := r.active[ref]
	for _, old := range r.ended {
		if b == nil && old.request.Ref == ref {
			b = old
		}
	}
	if b != nil {
		b.log.Retain()
		r.mu.Unlock()
		return b.log, began, nil
	}
	e, ok := r.of(ref)
	r.mu.Unlock()
	if !ok {
		return nil, began, fs.ErrNotExist
	}
	f, err := r.history.OpenRecord(e.id)
	if err != nil {
		return nil, began, err
	}
	defer f.Close()
	rec, blobs, err := readFile(f)
	if err != nil {
		return nil, began, err
	}
	if rec.Logs == nil {
		return nil, began, nil
	}
	log := blobs[digest.Digest(rec.Logs.Digest)]
	return nil, began, status.Replay(ctx, io.NewSectionReader(f, log.Offset, log.Size), log.Size, send)
}
