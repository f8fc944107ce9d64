package gunzip

import (
	"errors"
	"io"
	"sync"

	"github.com/kilnbuild/kiln/internal/inflate"
)

var errClosed = errors.New("gunzip: read after Close")

// ahead decodes blocks in a goroutine of its own. Its channels have room for all blocks, and for the one that the Reader had before.
type ahead struct {
	decoded chan *block // where they are summed, if at all
	full    chan *block
	free    chan *block
	slots   chan struct{} // of members being decompressed beside each other
	quit    chan struct{}
	once    sync.Once
	running sync.WaitGroup
}

// Ahead has z decode in another goroutine from now on, up to three blocks of 512 KiB before they are read. Each block is written to sum, in
// a third goroutine, before it is read; sum is nil for nothing, and must not fail, as a hash.Hash does not. Members that say their size
// are decoded side by side, on all processors; check sums of others are computed by Read and WriteTo. Close must be called. Ahead
// may be called once, before the first Read if there is a sum.
func (z *Reader) Ahead(sum io.Writer) {
	blocks, slots := aheadBlocks, workers()
	if z.members.size > 0 {
		blocks = max(blocks, slots+3) // one is read, one summed, one waits
	}
	a := &ahead{
		decoded: make(chan *block, blocks+1),
		full:    make(chan *block, blocks+1),
		free:    make(chan *block, blocks+1),
		slots:   make(chan struct{}, slots),
		quit:    make(chan struct{}),
	}
	for range blocks {
		a.free <- nil
	}
	z.ahead = a
	if sum != nil {
		a.running.Go(func() { a.sum(sum) })
	} else {
		a.decoded = a.full
	}
	a.running.Go(func() { a.decode(&z.members, z.block) })
}

// decode fills blocks until the file ends. Each begins with the end of the one before, which may be free again but is not written to.
func (a *ahead) decode(m *members, last *block) {
	defer close(a.decoded)
	for {
		select {
		case b := <-a.free:
			if m.size > 0 && (last == nil || last.end) {
				err := a.whole(m, &b)
				a.decoded <- b
				if last = b; err != nil {
					return
				}
				continue
			}
			if b == nil || len(b.buf) < inflate.Window+aheadSize+inflate.Slack {
				b = newBlock(aheadSize)
			}
			m.fill(b, last)
			a.decoded <- b
			if last = b; b.err != nil {
				return
			}
		case <-a.quit:
			return
		}
	}
}

// whole reads a member that says its size, and the header of the next one, and has it decoded in a goroutine of its own. It returns the
// error that ends the file.
func (a *ahead) whole(m *members, at **block) error {
	if *at == nil {
		*at = &block{}
	}
	b := *at
	b.from, b.to, b.end, b.trailer, b.whole = 0, 0, true, nil, true
	if b.err = m.read(b); b.err != nil {
		b.whole = false
		return b.err
	}
	end := m.header()
	a.slots <- struct{}{}
	a.running.Go(func() {
		b.buf, b.to, b.err = b.sized.decode(b.buf)
		if b.err == nil {
			b.err = end
		}
		<-a.slots
		b.sized.done <- struct{}{}
	})
	return end
}

// wait waits until a block has its data. It is called once for each.
func (b *block) wait() *block {
	if b.whole {
		<-b.sized.done
	}
	return b
}

func (a *ahead) sum(to io.Writer) {
	for b := range a.decoded {
		b.wait()
		_, _ = to.Write(b.buf[b.from:b.to])
		a.full <- b
	}
}

// next returns the next block, and gives the last one back. There is one unless the one before had an error.
func (a *ahead) next(last *block) *block {
	if last != nil {
		a.free <- last
	}
	b := <-a.full
	if a.decoded == a.full {
		b.wait()
	}
	return b
}

func (a *ahead) stop() {
	a.once.Do(func() { close(a.quit) })
	a.running.Wait()
}
