package client

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/received"
	"github.com/kilnbuild/kiln/llb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"google.golang.org/grpc/metadata"
)

// The names of what a request for a directory says, as BuildKit's clients know them.
const (
	headerDir     = "dir-name"
	headerInclude = "include-patterns"
	headerExclude = "exclude-patterns"
	headerFollow  = "followpaths"
	// headerEncoded is added to the name of a value that is encoded as in a query.
	headerEncoded = "-encoded"
)

// Open implements session.Locals: the client sends what kiln does not have of the files of a directory. A Local may name another session of
// the same user; where there is none, it is this client's directory. The tree can be used until Close.
func (c *Client) Open(ctx context.Context, l llb.Local) (layer.Tree, error) {
	if other, err := c.other(ctx, l.Session); err != nil {
		return nil, err
	} else if l.Session = ""; other != c {
		return other.Open(ctx, l)
	}
	key, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return c.trees.Do(ctx, string(key), func(ctx context.Context) (layer.Tree, error) {
		c.mu.Lock()
		c.received = append(c.received, l.Name)
		c.mu.Unlock()
		tree, err := c.receive(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("receive the directory %q of the client: %w", l.Name, err)
		}
		return tree, nil
	})
}

// Received returns the names of the directories that the client was asked for, in order.
func (c *Client) Received() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(c.received)))
}

// receive has the client send a directory.
func (c *Client) receive(ctx context.Context, l llb.Local) (layer.Tree, error) {
	calling, caller, err := c.call(ctx)
	if err != nil {
		return nil, err
	}
	if !supports(caller, filesync.FileSync_ServiceDesc.ServiceName, "DiffCopy") {
		return nil, errors.New("it sends none")
	}
	whole, err := ignore.New(ctx, l.Whole)
	if err != nil {
		return nil, err
	}
	cache, err := received.Open(ctx, c.config.Root, c.config.Tmp, c.cacheKey(caller, l), variant(l))
	if err != nil {
		return nil, err
	}
	calling, cancel := context.WithCancel(calling)
	defer cancel()
	stream, err := filesync.NewFileSyncClient(caller.Conn()).DiffCopy(metadata.NewOutgoingContext(calling, header(l)))
	if err != nil {
		return nil, errors.Join(err, cache.Close())
	}
	r := &receiver{
		stream: stream, cache: cache, limit: c.config.Limit.OrDefault(), all: l.Unlike, metadata: l.Metadata, whole: whole,
		count: events.From(ctx).Transferring(l.Name, events.Sending, 0),
	}
	if caller.SharedKey() == "" {
		r.proof = minProof
	}
	tree, err := r.run(calling)
	if err != nil {
		// The end of the session, or of the build, says more than that of the stream.
		if calling.Err() != nil {
			err = context.Cause(calling)
		}
		return nil, errors.Join(err, cache.Close())
	}
	c.keep(cache)
	if r.devices > 0 {
		c.Warn(fmt.Sprintf("the directory %q of the client has device nodes, which are left out: %d", l.Name, r.devices))
	}
	return tree, nil
}

// cacheKey returns the name of the cache of a directory: it is the same for whoever is the same user and has the same key. docker buildx
// makes one of the path of the directory and of the machine that it is on; buildctl makes none.
func (c *Client) cacheKey(caller session.Caller, l llb.Local) string {
	return hash(c.config.User, caller.SharedKey(), l.Name, l.Shared)
}

// variant returns the name of a selection of a directory.
func variant(l llb.Local) string {
	parts := []string{fmt.Sprint(l.Metadata)}
	for _, list := range [][]string{l.Include, l.Exclude, l.Follow, l.Whole} {
		parts = append(parts, fmt.Sprint(len(list)))
		parts = append(parts, list...)
	}
	return hash(parts...)
}

// hash returns 32 hexadecimal digits.
func hash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:16])
}

// header returns what a request for a directory says.
func header(l llb.Local) metadata.MD {
	md := metadata.MD{}
	set := func(name string, values ...string) {
		if len(values) == 0 {
			return
		}
		if slices.ContainsFunc(values, func(v string) bool { return !plain(v) }) {
			values = slices.Clone(values)
			for i, v := range values {
				values[i] = url.QueryEscape(v)
			}
			md.Set(name+headerEncoded, "1")
		}
		md[name] = values
	}
	set(headerDir, l.Name)
	set(headerInclude, l.Include...)
	set(headerExclude, l.Exclude...)
	set(headerFollow, l.Follow...)
	return md
}

// plain reports whether a value can be in a header as it is.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
