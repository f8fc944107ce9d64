package contexts

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver/session"
)

// Opened are the contexts of a job that are open. A request may add some while steps of another one run.
type Opened struct {
	// client has those that are not among trees; nil for none.
	client session.Locals

	mu    sync.Mutex
	trees map[localName]layer.Tree
	// needed are what the steps of all graphs so far need of the client's directories, by the digests of vertices with such an op alone.
	needed map[llb.Digest]*needed
	all    []*Contexts
}

// NewOpened returns an Opened without any. client has those that are directories of a client elsewhere; nil for none.
func NewOpened(client session.Locals) *Opened {
	return &Opened{client: client, trees: map[localName]layer.Tree{}, needed: map[llb.Digest]*needed{}}
}

// Main returns the build context of a job that has one request; nil if it is not open.
func (o *Opened) Main() layer.Tree {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.trees[localName{"", Main}]
}

// Replace has all directories come from a client, before steps use any.
func (o *Opened) Replace(client session.Locals) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.client, o.trees = client, map[localName]layer.Tree{}
}

// needed are the paths that steps need of a directory; nil for all of it.
type needed struct{ paths map[string]bool }

// localName is the name of an llb.Local that is open. Of a server, each request with a context that is no directory of its client has a
// session of its own.
type localName struct{ session, name string }

// Open implements session.Locals.
func (o *Opened) Open(ctx context.Context, op llb.Local) (layer.Tree, error) {
	whole := op
	whole.Session = ""
	o.mu.Lock()
	tree := o.trees[localName{op.Session, op.Name}]
	if n := o.needed[digestOf(op)]; n != nil && n.paths != nil && len(op.Include)+len(op.Follow) == 0 {
		op.Follow = slices.Sorted(maps.Keys(n.paths))
	}
	o.mu.Unlock()
	switch {
	case tree != nil && !whole.Filtered():
		return tree, nil
	case o.client != nil:
		return o.client.Open(ctx, op)
	}
	return nil, fmt.Errorf("BUG: no local directory %q", op.Name)
}

// Begin returns contexts that are closed with the job, and the session that they have.
func (o *Opened) Begin() (c *Contexts, session string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.client != nil {
		session = fmt.Sprintf("context %d of the build", len(o.all)+1)
	}
	c = &Contexts{Add: func(name string, tree layer.Tree) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.trees[localName{session, name}] = tree
	}}
	o.all = append(o.all, c)
	return c, session
}

// digestOf returns what tells an op from others.
func digestOf(op llb.Local) llb.Digest {
	var g llb.Graph
	return g.Add(op, llb.Meta{}).Digest()
}

// Need notes what a graph needs of the client's directories, before it is solved: whoever opens one later gets that of it, besides what
// others need.
func (o *Opened) Need(roots []llb.Output) {
	if o.client == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	llb.Needs(roots, func(op llb.Local, path string) {
		d := digestOf(op)
		n := o.needed[d]
		if n == nil {
			n = &needed{paths: map[string]bool{}}
			o.needed[d] = n
		}
		if path == "" {
			n.paths = nil
		} else if n.paths != nil {
			n.paths[path] = true
		}
	})
}

// Close closes them.
func (o *Opened) Close() {
	for _, c := range o.all {
		c.Close()
	}
}
