package records

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
	control "github.com/moby/buildkit/api/services/control"
	"github.com/tonistiigi/go-csvvalue"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// subscriberQueue is how many events wait for a reader of the history that does not keep up, before it is sent away.
const subscriberQueue = 1024

// subscriber is told what happens to records.
type subscriber struct {
	events chan *control.BuildHistoryEvent
	// lost is closed when there was no room for an event.
	lost chan struct{}
}

// publish tells all subscribers. r.mu is held.
func (r *Records) publish(e *control.BuildHistoryEvent) {
	for s := range r.subs {
		select {
		case s.events <- e:
		default:
			close(s.lost)
			delete(r.subs, s)
		}
	}
}

// QueryError is a question about the history that cannot be answered as it is asked.
type QueryError struct{ Why string }

func (e *QueryError) Error() string { return e.Why }

// Code implements what package grpcerrors looks for.
func (e *QueryError) Code() codes.Code { return codes.InvalidArgument }

// NotFoundError is a build that is not in the history.
type NotFoundError struct{ Ref string }

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("build %.64q is not in the history", e.Ref)
}

// Code implements what package grpcerrors looks for.
func (e *NotFoundError) Code() codes.Code { return codes.NotFound }

// errSlow is the end of a subscriber that does not read.
var errSlow = errors.New("too much happens to the history for its reader")

// Listen calls send with the builds that go on, and with those of the history unless only active ones are asked for; then, unless the
// request is for an early exit, with what happens to any of them until ctx ends.
func (r *Records) Listen(ctx context.Context, req *control.BuildHistoryRequest, send func(*control.BuildHistoryEvent) error) error {
	match, err := parseFilters(req.Filter)
	if err != nil {
		return err
	}
	if req.Limit < 0 {
		return &QueryError{fmt.Sprintf("invalid limit %d", req.Limit)}
	}
	var sub *subscriber
	var now, ids = []*control.BuildHistoryEvent(nil), []string(nil)
	r.mu.Lock()
	if !req.EarlyExit {
		sub = &subscriber{make(chan *control.BuildHistoryEvent, subscriberQueue), make(chan struct{})}
		r.subs[sub] = struct{}{}
		defer func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.subs, sub)
		}()
	}
	for ref, b := range r.active {
		if (req.Ref == "" || req.Ref == ref) && b.recorded() && !b.dropped {
			now = append(now, &control.BuildHistoryEvent{Type: control.BuildHistoryEventType_STARTED, Record: b.begun()})
		}
	}
	if !req.ActiveOnly {
		r.refresh()
		for id, e := range r.index {
			if e.ref != "" && (req.Ref == "" || req.Ref == e.ref) {
				ids = append(ids, id)
			}
		}
	}
	r.mu.Unlock()
	for _, e := range now {
		if err := send(e); err != nil {
			return err
		}
	}
	if err := r.completed(ctx, ids, match, int(req.Limit), send); err != nil || req.EarlyExit {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-sub.lost:
			return errSlow
		case e := <-sub.events:
			if req.Ref != "" && req.Ref != e.Record.Ref {
				continue
			}
			if err := send(e); err != nil {
				return err
			}
		}
	}
}

// completed sends those of the records that match, the oldest first; of more than limit only the last ones, the last first. One record is
// in memory at a time.
func (r *Records) completed(
	ctx context.Context, ids []string, match func(*control.BuildHistoryRecord) bool, limit int, send func(*control.BuildHistoryEvent) error,
) error {
	slices.Sort(ids)
	if limit > 0 {
		slices.Reverse(ids)
	}
	sent := 0
	for _, id := range ids {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if limit > 0 && sent == limit {
			break
		}
		_, rec, err := r.open(id)
		if err != nil || !match(rec) {
			continue // it has just been removed, or is not asked for
		}
		if err := send(&control.BuildHistoryEvent{Type: control.BuildHistoryEventType_COMPLETE, Record: rec}); err != nil {
			return err
		}
		sent++
	}
	return nil
}

// Update pins a record, lets go of it, or deletes it.
func (r *Records) Update(req *control.UpdateBuildHistoryRequest) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.active[req.Ref]
	e, ok := r.of(req.Ref)
	switch {
	case req.Delete:
		if b != nil {
			b.dropped = true
		}
		if ok {
			if _, err := r.history.Remove(e.id); err != nil {
				return err
			}
			delete(r.index, e.id)
		}
		if b == nil && !ok {
			return &NotFoundError{req.Ref}
		}
		r.publish(&control.BuildHistoryEvent{
			Type: control.BuildHistoryEventType_DELETED, Record: &control.BuildHistoryRecord{Ref: req.Ref},
		})
		return nil
	case req.Finalize:
		return nil // a record is complete when it is there
	case !ok:
		return &NotFoundError{req.Ref}
	}
	if err := r.history.Pin(e.id, req.Pinned); err != nil {
		return err
	}
	if _, rec, err := r.open(e.id); err == nil {
		r.publish(&control.BuildHistoryEvent{Type: control.BuildHistoryEventType_COMPLETE, Record: rec})
	}
	return nil
}

// Bounds of filters that clients send.
const (
	maxFilters = 100
	maxFilter  = 4 << 10
)

// checkFilters refuses filters that are too many or too long.
func checkFilters(all []string) error {
	if len(all) > maxFilters {
		return &QueryError{fmt.Sprintf("there are more than %d filters", maxFilters)}
	}
	for _, f := range all {
		if len(f) > maxFilter {
			return &QueryError{fmt.Sprintf("a filter is longer than %d bytes", maxFilter)}
		}
	}
	return nil
}

// predicate says whether a record is asked for.
type predicate func(*control.BuildHistoryRecord) bool

// parseFilters returns what matches one of the filters; without filters everything does.
func parseFilters(all []string) (predicate, error) {
	if err := checkFilters(all); err != nil {
		return nil, err
	}
	var any []predicate
	for _, f := range all {
		p, err := parseFilter(f)
		if err != nil {
			return nil, err
		}
		any = append(any, p)
	}
	return func(rec *control.BuildHistoryRecord) bool {
		return len(any) == 0 || slices.ContainsFunc(any, func(p predicate) bool { return p(rec) })
	}, nil
}

// parseFilter returns what matches all conditions of a filter: times and durations as "startedAt>2h", and containerd's for other fields.
func parseFilter(text string) (predicate, error) {
	fields, err := csvvalue.Fields(text, nil)
	if err != nil {
		return nil, &QueryError{fmt.Sprintf("parse filter %q: %v", text, err)}
	}
	var all []predicate
	var rest []string
	for _, f := range fields {
		p, err := parseTime(f)
		if err != nil {
			return nil, err
		}
		if p == nil {
			rest = append(rest, f)
			continue
		}
		all = append(all, p)
	}
	filter, err := filters.ParseAll(strings.Join(rest, ","))
	if err != nil {
		return nil, &QueryError{fmt.Sprintf("parse filter %q: %v", text, err)}
	}
	all = append(all, func(rec *control.BuildHistoryRecord) bool { return filter.Match(fieldsOf(rec)) })
	return func(rec *control.BuildHistoryRecord) bool {
		return !slices.ContainsFunc(all, func(p predicate) bool { return !p(rec) })
	}, nil
}

// comparisons are the operators of parseTime: those that begin as another come first.
var comparisons = []struct {
	op string
	is func(x, y int64) bool
}{
	{">=", func(x, y int64) bool { return x >= y }},
	{"<=", func(x, y int64) bool { return x <= y }},
	{">", func(x, y int64) bool { return x > y }},
	{"<", func(x, y int64) bool { return x < y }},
}

// parseTime returns what matches a condition on a time or a duration; nil for another condition.
func parseTime(text string) (predicate, error) {
	for _, c := range comparisons {
		key, value, ok := strings.Cut(text, c.op)
		if !ok {
			continue
		}
		var of func(*control.BuildHistoryRecord) int64
		switch key {
		case "startedAt":
			of = func(rec *control.BuildHistoryRecord) int64 { return rec.CreatedAt.AsTime().Unix() }
		case "completedAt":
			of = func(rec *control.BuildHistoryRecord) int64 { return rec.CompletedAt.AsTime().Unix() }
		case "duration":
			d, err := time.ParseDuration(value)
			if err != nil {
				return nil, &QueryError{"invalid duration " + value}
			}
			return func(rec *control.BuildHistoryRecord) bool {
				return rec.CompletedAt != nil && c.is(int64(rec.CompletedAt.AsTime().Sub(rec.CreatedAt.AsTime())), int64(d))
			}, nil
		default:
			return nil, nil
		}
		at, err := time.Parse(time.RFC3339, value)
		if d, durationErr := time.ParseDuration(value); durationErr == nil {
			at, err = time.Now().Add(-d), nil
		}
		if err != nil {
			return nil, &QueryError{"invalid time " + value}
		}
		limit := at.Unix()
		return func(rec *control.BuildHistoryRecord) bool { return c.is(of(rec), limit) }, nil
	}
	return nil, nil
}

// The states of a record, for filters.
const (
	stateRunning   = "running"
	stateCompleted = "completed"
	stateError     = "error"
	stateCanceled  = "canceled"
)

// fieldsOf returns the fields of a record, for filters.
func fieldsOf(rec *control.BuildHistoryRecord) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "ref":
			return rec.Ref, rec.Ref != ""
		case "status":
			switch {
			case rec.CompletedAt == nil:
				return stateRunning, true
			case rec.Error == nil:
				return stateCompleted, true
			case codes.Code(rec.Error.Code) == codes.Canceled:
				return stateCanceled, true
			}
			return stateError, true
		case "repository":
			if v, ok := rec.FrontendAttrs["vcs:source"]; ok {
				return v, true
			}
			if g, err := remoteurl.ParseGit(rec.FrontendAttrs["context"]); err == nil {
				return g.Remote, true
			}
		}
		return "", false
	})
}
