package remote

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/cache/pack"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// Any number of writers publish under one tag at once, and a registry has no way to replace a tag only if nobody else has. So nothing
// relies on the order in which they do:
//
//  1. A writer first puts its own pack under a tag of its own, its entry, whose name begins with that of the cache.
//  2. It reads the cache and every entry that the cache does not include, and adds them up. Pack.Add does not depend on the order.
//  3. If the cache has all of that, the writer is done. Else it puts the sum under the cache's tag, and goes back to 2.
//
// Consider the last put of the cache's tag by anyone. Its writer has read all entries afterwards, and found that the cache had them. An
// entry that came later belongs to a writer that has not yet read the cache, and would put it again if something was missing. So when all
// writers have ended, the cache has what each of them had, whoever overwrote whom meanwhile; and what a writer leaves that is killed is
// taken up by the next one.
//
// A writer that reads the cache before an entry exists, and puts it after the entry is removed, would break that. So no writer puts what it
// has gathered longer than maxWindow ago, and an entry stays for settleTime, which also makes up for clocks that differ. Then whoever
// publishes next removes it. Where a registry does not allow that, a writer takes the tag of such an entry for its own in place of making
// one more, once there are maxSettled; two that take the same one in the same moment notice it at the end, since the entry is not theirs
// then.
const (
	entryInfix = ".kiln-"
	maxSettled = 16
	maxWindow  = 10 * time.Minute
	settleTime = time.Hour
	// maxRounds bounds how often a writer puts the cache's tag.
	maxRounds = 60
)

// Slack is how old a record's time of use may become before it is published again.
const Slack = 12 * time.Hour

// Publish adds own to the cache under a tag, and trims that to a limit. Blobs that own refers to must have been put. seen is what the cache
// held when it was read last, or nil. Publish returns what it holds then.
func Publish(ctx context.Context, r Repository, tag string, own *pack.Pack, l pack.Limit, seen *Head) (*pack.Pack, error) {
	w := &writer{repository: r, tag: tag, own: own, limit: l, entries: map[string]*Head{}, known: map[digest.Digest]*Head{}}
	w.limit.Blobs, w.limit.Records = maxBlobs, pack.MaxRecords
	if seen != nil {
		w.known[seen.digest] = seen
	}
	p, err := w.publish(ctx)
	if err != nil {
		return nil, fmt.Errorf("publish the cache %s: %w", r, err)
	}
	return p, nil
}

// Prune trims the cache under a tag, or removes all of its records, and returns how many records it had and has. What others publish
// meanwhile may bring some back.
func Prune(ctx context.Context, r Repository, tag string, l pack.Limit, all bool) (before, after int, err error) {
	h, err := Read(ctx, r, tag)
	if err != nil {
		return 0, 0, err
	}
	before = len(h.Pack.Records) + len(h.Pack.Foreign)
	left := &pack.Pack{}
	if !all {
		left.Add(h.Pack)
		left.Trim(l, time.Now())
	}
	after = len(left.Records) + len(left.Foreign)
	if after < before {
		_, err = write(ctx, r, tag, left, h.included)
	}
	if d, ok := r.(*Dir); ok && err == nil {
		err = d.Sweep()
	}
	return before, after, err
}

type writer struct {
	repository Repository
	tag        string
	own        *pack.Pack
	limit      pack.Limit

	mine    string                  // the tag of the writer's own entry
	taken   bool                    // mine was that of an older entry, and another writer may take it as well
	put     digest.Digest           // of the manifest that the writer put there
	entries map[string]*Head        // of writers, this one included, by tag
	known   map[digest.Digest]*Head // everything that was read or written, by the digest of the manifest
}

func (w *writer) publish(ctx context.Context) (*pack.Pack, error) {
	h, err := w.head(ctx)
	if err != nil {
		return nil, err
	}
	if h.Pack.Has(w.own, Slack) {
		return h.Pack, nil
	}
	if err := w.enter(ctx, h); err != nil {
		return nil, err
	}
	for range maxRounds {
		gathered := time.Now()
		if err := w.gather(ctx, h); err != nil {
			return nil, err
		}
		if w.taken && w.entries[w.mine].digest != w.put { // another writer has taken the same tag
			if err := w.enter(ctx, h); err != nil {
				return nil, err
			}
		}
		sum, included := &pack.Pack{}, map[string]digest.Digest{}
		sum.Add(h.Pack)
		for tag, e := range w.entries {
			sum.Add(e.Pack)
			included[tag] = e.digest
		}
		for tag, d := range h.included {
			if included[tag] == "" && !settled(tag) {
				included[tag] = d
			}
		}
		sum.Trim(w.limit, time.Now())
		if h.Pack.Has(sum, Slack) && contains(h.included, included) {
			w.clean(ctx)
			return h.Pack, nil
		}
		if time.Since(gathered) < maxWindow {
			if err := w.write(ctx, w.tag, sum, included); err != nil {
				return nil, err
			}
		}
		if h, err = w.head(ctx); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("too many others write to it at the same time")
}

// contains reports whether all of part is in m.
func contains(m, part map[string]digest.Digest) bool {
	for tag, d := range part {
		if m[tag] != d {
			return false
		}
	}
	return true
}

// read returns what a tag holds; it reads the pack only of what it does not know.
func (w *writer) read(ctx context.Context, tag string) (*Head, error) {
	data, err := w.repository.Get(ctx, tag)
	if err != nil {
		return nil, err
	}
	if h := w.known[digest.FromBytes(data)]; h != nil {
		return h, nil
	}
	h, err := read(ctx, w.repository, data)
	if err == nil {
		w.known[h.digest] = h
	}
	return h, err
}

func (w *writer) write(ctx context.Context, tag string, p *pack.Pack, included map[string]digest.Digest) error {
	h, err := write(ctx, w.repository, tag, p, included)
	if err == nil {
		w.known[h.digest] = h
	}
	return err
}

// head reads the cache. One that is damaged counts as empty: it is worth nothing, and is replaced. One of a later version of kiln, and what
// is no cache, is not touched.
func (w *writer) head(ctx context.Context) (*Head, error) {
	h, err := w.read(ctx, w.tag)
	if none(err) || errors.As(err, new(*DamagedError)) {
		return &Head{Pack: &pack.Pack{}}, nil
	}
	return h, err
}

// enter puts the writer's own entry.
func (w *writer) enter(ctx context.Context, h *Head) error {
	var free []string
	for tag := range h.included {
		if settled(tag) {
			free = append(free, tag)
		}
	}
	w.mine, w.taken = fmt.Sprintf("%s%s%x-%s", w.tag, entryInfix, time.Now().Unix(), strings.ToLower(rand.Text()[:8])), false
	if len(free) >= maxSettled {
		w.mine, w.taken = free[mathrand.IntN(len(free))], true
	}
	e, err := write(ctx, w.repository, w.mine, w.own, nil)
	if err == nil {
		w.entries[w.mine], w.put = e, e.digest
	}
	return err
}

// settled reports whether a tag is that of an entry which was made more than settleTime ago.
func settled(tag string) bool {
	_, name, _ := strings.Cut(tag, entryInfix)
	made, _, _ := strings.Cut(name, "-")
	unix, err := strconv.ParseInt(made, 16, 64)
	return err == nil && time.Since(time.Unix(unix, 0)) > settleTime
}

// gather reads the entries that are there and not known. The tag of one that is not settled is nobody else's, so one of those that the
// cache includes is not read.
func (w *writer) gather(ctx context.Context, h *Head) error {
	tags, err := w.repository.Tags(ctx, w.tag+entryInfix)
	if err != nil {
		return err
	}
	tags = slices.DeleteFunc(tags, func(tag string) bool {
		return tag == w.mine && !w.taken || w.entries[tag] == nil && h.included[tag] != "" && !settled(tag)
	})
	if len(w.entries)+len(tags) > maxOpen {
		return fmt.Errorf("it lists more than %d entries of writers", maxOpen)
	}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(entriesAtOnce)
	for _, tag := range tags {
		g.Go(func() error {
			e, err := w.entry(gctx, tag, h.included[tag])
			if err != nil || e == nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			w.entries[tag] = e
			return nil
		})
	}
	return g.Wait()
}

// maxOpen is how many entries a writer reads that the cache does not include.
const maxOpen = 1000

// entriesAtOnce is how many entries are read at once.
const entriesAtOnce = 8

// entry returns what a tag holds, without the pack if the cache includes the manifest with the digest included; nil if it is gone. Nobody
// can use one that is damaged.
func (w *writer) entry(ctx context.Context, tag string, included digest.Digest) (*Head, error) {
	data, err := w.repository.Get(ctx, tag)
	if none(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d := digest.FromBytes(data)
	if d == included {
		return &Head{Pack: &pack.Pack{}, digest: d}, nil
	}
	e, err := read(ctx, w.repository, data)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return &Head{Pack: &pack.Pack{}, digest: d}, nil
	}
	return e, nil
}

// clean removes entries that the cache includes, and that are settled. That not every registry can is no failure.
func (w *writer) clean(ctx context.Context) {
	for tag, e := range w.entries {
		if settled(tag) && tag != w.mine && w.repository.Remove(ctx, tag, e.digest) != nil {
			return
		}
	}
}

func bytesOf(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

func formatIncluded(m map[string]digest.Digest) string {
	var all []string
	for _, tag := range slices.Sorted(maps.Keys(m)) {
		all = append(all, tag+" "+string(m[tag]))
	}
	return strings.Join(all, ",")
}

func parseIncluded(s string) map[string]digest.Digest {
	m := map[string]digest.Digest{}
	for item := range strings.SplitSeq(s, ",") {
		if tag, d, ok := strings.Cut(item, " "); ok {
			m[tag] = digest.Digest(d)
		}
	}
	return m
}
