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
	"github.com/kilnbuild/kiln/internal/once"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Any number of writers publish under one tag at once, and a registry has no way to replace a tag only if nobody else has. So nothing
// relies on the order in which they do:
//
//  1. A writer reads the cache and every entry of a writer that the cache does not include.
//  2. It adds all of that and its own pack up, which Pack.Add does in any order with the same result. It puts the sum under the cache's tag
//     and, beside that, its own pack under a tag of its own, its entry, whose name begins with that of the cache.
//  3. When both are put, it reads the cache and the list of entries again, at the same time. If the cache has everything, the writer is
//     done. Else it goes back to 2.
//
// Consider the last put of the cache's tag by anyone, and the writer W of it. W has listed the entries afterwards, and the cache had them
// all. An entry that this list did not have was put later than that list began, and so later than the cache's last put; its writer reads
// the cache when its entry is put, finds what W has put, and would put it again if something was missing. So when all writers have ended,
// the cache has what each of them had, whoever overwrote whom meanwhile; and what a writer leaves that is killed is taken up by the next
// one.
//
// A writer that reads the cache before an entry is included, and puts it after the entry is removed, would break that. So no writer puts
// what it has gathered longer than maxWindow ago, and an entry stays for settleTime, which also makes up for clocks that differ. Then
// whoever publishes next removes it; if the cache did not include it, since its writer was killed, this one has taken it into its own entry
// first. Where a registry does not allow removal, a writer takes the tag of such an entry for its own in place of making one more, once
// there are maxSettled; two that take the same one in the same moment notice it at the end, since the entry is not theirs then.
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

// Publish adds own to the cache under a tag, and trims that to a limit. Blobs that own refers to must have been put. It returns what the
// cache holds then.
func Publish(ctx context.Context, r Repository, tag string, own *pack.Pack, l pack.Limit) (*pack.Pack, error) {
	return NewWriter(r, tag).Publish(ctx, own, l, nothing)
}

// Count is how many records and cache mounts a cache has.
type Count struct{ Records, Mounts int }

func count(p *pack.Pack) Count { return Count{len(p.Records) + len(p.Foreign), len(p.Mounts)} }

// Prune trims the cache under a tag, or removes all that it has, and returns how much it had and has. Where the repository is no Swapper,
// what others publish meanwhile may bring some back.
func Prune(ctx context.Context, r Repository, tag string, l pack.Limit, all bool) (before, after Count, err error) {
	h, err := Read(ctx, r, tag)
	if err != nil {
		return before, after, err
	}
	if h.inline {
		return before, after, fmt.Errorf("%w, but an image, whose cache is a part of it", ErrNoCache)
	}
	trim := func(held *pack.Pack) *pack.Pack {
		before = count(held)
		left := &pack.Pack{}
		if !all {
			left.Add(held)
			left.Trim(l, time.Now())
		}
		if after = count(left); after == before {
			return nil
		}
		return left
	}
	if s, ok := r.(Swapper); ok {
		w := NewWriter(r, tag)
		w.Form = h.form
		w.Knows(h)
		_, err = w.swap(ctx, s, nothing, trim)
	} else if left := trim(h.Pack); left != nil {
		_, err = write(ctx, r, tag, left, h.included, h.form)
	}
	s, ok := r.(Sweeper)
	if err != nil || !ok {
		return before, after, err
	}
	for entry, d := range h.included { // which refer to blobs
		if settled(entry) {
			if err := r.Remove(ctx, entry, d); err != nil && !none(err) {
				return before, after, err
			}
		}
	}
	return before, after, s.Sweep(ctx)
}

// write makes a pack what a tag holds.
func write(ctx context.Context, r Repository, tag string, p *pack.Pack, included map[string]digest.Digest, form Form) (*Head, error) {
	d, err := newDocument(p, included, form, true)
	if err != nil {
		return nil, err
	}
	err = NewWriter(r, tag).set(ctx, tag, d, nothing, func() bool { return true })
	return d.head, err
}

// nothing is what has been sent before.
func nothing(context.Context) error { return nil }

// Writer publishes to one cache, once.
type Writer struct {
	// Form is that of the manifest. It is set before anything is published.
	Form Form

	repository Repository
	tag        string
	own        *pack.Pack
	limit      pack.Limit
	prepare    sync.Once

	early   *Head            // what Prepare read
	mine    string           // the tag of the writer's own entry
	taken   bool             // mine was that of an older entry, and another writer may take it as well
	entered *Head            // what the writer puts there
	entries map[string]*Head // of writers, this one included, by tag
	putting once.Group[digest.Digest, struct{}]

	mu    sync.Mutex
	known map[digest.Digest]*Head // everything that was read or written, by the digest of the manifest
	there map[digest.Digest]bool  // blobs that were put
}

// NewWriter returns a Writer of the cache under a tag.
func NewWriter(r Repository, tag string) *Writer {
	return &Writer{repository: r, tag: tag, entries: map[string]*Head{}, known: map[digest.Digest]*Head{}, there: map[digest.Digest]bool{}}
}

// Knows tells the Writer what the cache held when somebody else read it, so that it is not read again.
func (w *Writer) Knows(h *Head) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.known[h.digest] = h
}

// Prepare does what can be done before there is something to publish: Publish then needs fewer requests. What fails shows again there.
func (w *Writer) Prepare(ctx context.Context) {
	w.prepare.Do(func() {
		var config sync.WaitGroup
		config.Go(func() { _ = w.store(ctx, emptyConfig, emptyConfig.Data) })
		if _, ok := w.repository.(Swapper); ok {
			w.early, _ = w.head(ctx)
		} else {
			w.early, _ = w.survey(ctx)
		}
		config.Wait()
	})
}

// Publish adds own to the cache and trims that to a limit. Before it puts a manifest it calls sent, which returns once the blobs are put
// that own refers to. It returns what the cache holds then.
func (w *Writer) Publish(ctx context.Context, own *pack.Pack, l pack.Limit, sent func(context.Context) error) (*pack.Pack, error) {
	w.prepare.Do(func() {}) // waits for it
	w.own, w.limit = &pack.Pack{}, l
	w.own.Add(own)
	w.limit.Blobs, w.limit.Records = maxBlobs, pack.MaxRecords
	var p *pack.Pack
	var err error
	if s, ok := w.repository.(Swapper); ok {
		p, err = w.swap(ctx, s, sent, w.add)
	} else {
		p, err = w.publish(ctx, sent)
	}
	if err != nil {
		return nil, fmt.Errorf("publish the cache %s: %w", w.repository, err)
	}
	return p, nil
}

func (w *Writer) publish(ctx context.Context, sent func(context.Context) error) (*pack.Pack, error) {
	if w.early != nil && w.early.Pack.Has(w.own, Slack) {
		return w.early.Pack, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	var early sync.WaitGroup
	defer early.Wait()
	defer cancel()
	// The entry's records go while the cache is read. If that fails it shows when the entry is put.
	if e, err := newDocument(w.own, nil, w.Form, true); err == nil {
		early.Go(func() { _ = w.store(ctx, e.records, e.text) })
	}
	for round := range maxRounds {
		gathered := time.Now()
		h, err := w.survey(ctx)
		if err != nil {
			return nil, err
		}
		if round == 0 && h.Pack.Has(w.own, Slack) {
			return h.Pack, nil
		}
		for tag, e := range w.entries {
			if tag != w.mine && settled(tag) && h.included[tag] != e.digest {
				w.own.Add(e.Pack)
			}
		}
		var puts []func(context.Context) error
		if w.entered == nil || !w.entered.Pack.Has(w.own, Slack) || w.entries[w.mine].digest != w.entered.digest {
			entry, err := w.enter(h)
			if err != nil {
				return nil, err
			}
			puts = append(puts, func(ctx context.Context) error {
				return w.set(ctx, w.mine, entry, sent, func() bool { return true })
			})
		}
		sum, included := &pack.Pack{}, map[string]digest.Digest{}
		sum.Add(h.Pack)
		sum.Add(w.own)
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
		if h.Pack.Has(sum, Slack) && contains(h.included, included) && len(puts) == 0 {
			w.clean(ctx)
			return h.Pack, nil
		}
		doc, err := newDocument(sum, included, w.Form, true)
		if err != nil {
			return nil, err
		}
		puts = append(puts, func(ctx context.Context) error {
			return w.set(ctx, w.tag, doc, sent, func() bool { return time.Since(gathered) < maxWindow })
		})
		g, gctx := errgroup.WithContext(ctx)
		for _, put := range puts {
			g.Go(func() error { return put(gctx) })
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		sent = nothing
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

// read returns what a manifest says. It reads the pack only of one that is not known.
func (w *Writer) read(ctx context.Context, data []byte) (*Head, error) {
	w.mu.Lock()
	h := w.known[digest.FromBytes(data)]
	w.mu.Unlock()
	if h != nil {
		return h, nil
	}
	h, err := read(ctx, w.repository, data, func() {})
	if err == nil {
		w.Knows(h)
	}
	return h, err
}

// store puts a small blob, once.
func (w *Writer) store(ctx context.Context, desc ocispec.Descriptor, data []byte) error {
	_, err := w.putting.Do(ctx, desc.Digest, func(ctx context.Context) (struct{}, error) {
		w.mu.Lock()
		there := w.there[desc.Digest]
		w.mu.Unlock()
		if there {
			return struct{}{}, nil
		}
		desc.Data = nil
		err := w.repository.Put(ctx, desc, bytesOf(data))
		w.mu.Lock()
		defer w.mu.Unlock()
		w.there[desc.Digest] = err == nil
		return struct{}{}, err
	})
	return err
}

// send puts the blobs that a document names, and calls sent for those that its pack refers to.
func (w *Writer) send(ctx context.Context, d *document, sent func(context.Context) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.store(gctx, emptyConfig, emptyConfig.Data) })
	g.Go(func() error { return w.store(gctx, d.records, d.text) })
	g.Go(func() error { return sent(gctx) })
	return g.Wait()
}

// set puts a document under a tag, after sent and if may still says so then.
func (w *Writer) set(ctx context.Context, tag string, d *document, sent func(context.Context) error, may func() bool) error {
	if err := w.send(ctx, d, sent); err != nil || !may() {
		return err
	}
	if err := w.repository.Set(ctx, tag, d.mediaType, d.manifest); err != nil {
		return err
	}
	w.Knows(d.head)
	return nil
}

// survey reads the cache, and the entries that it does not include.
func (w *Writer) survey(ctx context.Context) (*Head, error) {
	var h *Head
	var tags []string
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		h, err = w.head(gctx)
		return err
	})
	g.Go(func() (err error) {
		tags, err = w.repository.Tags(gctx, w.tag+entryInfix)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return h, w.gather(ctx, h, tags)
}

// head reads the cache; its digest is "" if there is no manifest. A cache that is damaged counts as empty: it is worth nothing, and is
// replaced. One of a later version of kiln, and what is no cache, is not touched.
func (w *Writer) head(ctx context.Context) (*Head, error) {
	data, err := w.repository.Get(ctx, w.tag)
	if none(err) {
		return &Head{Pack: &pack.Pack{}}, nil
	}
	if err != nil {
		return nil, err
	}
	h, err := w.read(ctx, data)
	if none(err) || errors.As(err, new(*DamagedError)) {
		return &Head{Pack: &pack.Pack{}, digest: digest.FromBytes(data)}, nil
	}
	return h, err
}

// enter makes the writer's own entry, which is to be put under w.mine.
func (w *Writer) enter(h *Head) (*document, error) {
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
	own := &pack.Pack{} // w.own may get more
	own.Add(w.own)
	d, err := newDocument(own, nil, w.Form, true)
	if err == nil {
		w.entered, w.entries[w.mine] = d.head, d.head
	}
	return d, err
}

// settled reports whether a tag is that of an entry which was made more than settleTime ago.
func settled(tag string) bool {
	_, name, _ := strings.Cut(tag, entryInfix)
	made, _, _ := strings.Cut(name, "-")
	unix, err := strconv.ParseInt(made, 16, 64)
	return err == nil && time.Since(time.Unix(unix, 0)) > settleTime
}

// gather reads the entries of a list that are not known. The tag of one that is not settled is nobody else's, so one that was read, or that
// the cache includes, is not read.
func (w *Writer) gather(ctx context.Context, h *Head, tags []string) error {
	tags = slices.DeleteFunc(tags, func(tag string) bool {
		return tag == w.mine && !w.taken || !settled(tag) && (w.entries[tag] != nil || h.included[tag] != "")
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
func (w *Writer) entry(ctx context.Context, tag string, included digest.Digest) (*Head, error) {
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
	e, err := w.read(ctx, data)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return &Head{Pack: &pack.Pack{}, digest: d}, nil
	}
	return e, nil
}

// clean removes entries that the cache includes, and that are settled. That not every registry can is no failure.
func (w *Writer) clean(ctx context.Context) {
	var removing sync.WaitGroup
	for tag, e := range w.entries {
		if settled(tag) && tag != w.mine {
			removing.Go(func() { _ = w.repository.Remove(ctx, tag, e.digest) })
		}
	}
	removing.Wait()
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
