package daemon

import (
	"context"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/daemon/records"
	"github.com/kilnbuild/kiln/internal/share"
)

// builds are those that run, and those that ended a moment ago, by the refs that clients gave them.
type builds struct {
	mu    sync.Mutex
	byRef map[string]*buildJob
	// more is closed when there is another one.
	more chan struct{}
}

func newBuilds() *builds { return &builds{byRef: map[string]*buildJob{}, more: make(chan struct{})} }

// linger is how long a build is known after its end, for a client that asks late how it went on.
const linger = 5 * time.Second

// waitForBuild is how long a request may come before the build that it is about.
const waitForBuild = 10 * time.Second

// begin makes a build known.
func (s *Server) begin(ctx context.Context, b *buildJob) error {
	s.builds.mu.Lock()
	defer s.builds.mu.Unlock()
	select {
	case <-s.draining:
		return status.Error(codes.Unavailable, errStopping.Error())
	default:
	}
	name := b.request.Ref
	if s.builds.byRef[name] != nil {
		return status.Errorf(codes.AlreadyExists, "there is a build with the ref %s", name)
	}
	if has := s.builds.of(b.user); !share.Fits(has, maxKnown-len(s.builds.byRef)) {
		return status.Errorf(codes.ResourceExhausted, "%d builds go on or wait already, %d of them of this user", len(s.builds.byRef), has)
	}
	var err error
	if b.record, err = s.records.Begin(b.recording(ctx)); err != nil {
		return err
	}
	s.running.Add(1)
	b.log = b.record.Log()
	b.sources = map[string]*pb.SourceInfo{}
	b.ready, b.over, b.held.refs = make(chan struct{}), make(chan struct{}), map[string]*ref{}
	b.own = b.newBridge(b.request.FrontendInputs)
	s.builds.byRef[name] = b
	close(s.builds.more)
	s.builds.more = make(chan struct{})
	return nil
}

// of returns how many builds of a user are known. The lock is held.
func (b *builds) of(user string) int {
	n := 0
	for _, job := range b.byRef {
		if job.user == user {
			n++
		}
	}
	return n
}

// end ends a build, which is forgotten a little later, but for its record.
func (s *Server) end(b *buildJob, res records.Result) {
	b.finished()
	b.record.End(context.Background(), res)
	ref := b.request.Ref
	s.builds.put(ref, b.gone())
	s.running.Done()
	time.AfterFunc(linger, func() { s.builds.put(ref, nil) })
}

// gone returns what is known of a build that has ended: that it has. It holds nothing of the build.
func (b *buildJob) gone() *buildJob {
	g := &buildJob{
		server: b.server, request: &controlapi.SolveRequest{Ref: b.request.Ref}, user: b.user, cancel: func(error) {},
		ready: b.ready, over: b.over,
	}
	g.own = &bridge{buildJob: g}
	return g
}

// put says which build has a ref from now on; nil for none.
func (b *builds) put(ref string, job *buildJob) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if job == nil {
		delete(b.byRef, ref)
		return
	}
	b.byRef[ref] = job
}

// wait returns the build of a user with a ref, which may only be about to begin. The refs of all builds are in the history, for everybody,
// and what a build is asked is done with its client's session: that of another user is as good as none.
func (b *builds) wait(ctx context.Context, ref, user string) (*buildJob, error) {
	missing := status.Errorf(codes.NotFound, "no such job %s", ref)
	timeout := time.NewTimer(waitForBuild)
	defer timeout.Stop()
	for {
		b.mu.Lock()
		found, more := b.byRef[ref], b.more
		b.mu.Unlock()
		if found != nil && found.user == user {
			return found, nil
		}
		if found != nil {
			return nil, missing
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-timeout.C:
			return nil, missing
		}
	}
}

// cancel ends all builds.
func (b *builds) cancel(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, job := range b.byRef {
		job.cancel(cause)
	}
}
