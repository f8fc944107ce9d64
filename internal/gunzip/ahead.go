package gunzip

import (
	"errors"
	"io"
	"sync"
)

var errClosed = errors.New("gunzip: read after Close")

// ahead decodes blocks in a goroutine of its own. Its channels have room for all blocks, and for the one that the Reader had before.
type ahead struct {
	decoded chan *block // where they are summed, if at all
	full    chan *block
	free    chan *block
	quit    chan struct{}
	once    sync.Once
	running sync.WaitGroup
}

// Ahead has z decode in another goroutine from now on, up to three blocks of 512 KiB before they are read. Each block is written to sum, in a
// third goroutine, before it is read; sum is nil for nothing, and must not fail, as a hash.Hash does not. Check sums of members are
// computed by Read and WriteTo. Close must be called. Ahead may be called once, before the first Read if there is a sum.
func (z *Reader) Ahead(sum io.Writer) {
	a := &ahead{
		decoded: make(chan *block, aheadBlocks+1),
		full:    make(chan *block, aheadBlocks+1),
		free:    make(chan *block, aheadBlocks+1),
		quit:    make(chan struct{}),
	}
	for range aheadBlocks {
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
			if b == nil {
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

func (a *ahead) sum(to io.Writer) {
	for b := range a.decoded {
		_, _ = to.Write(b.buf[b.from:b.to])
		a.full <- b
	}
}

// next returns the next block, and gives the last one back. There is one unless the one before had an error.
func (a *ahead) next(last *block) *block {
	if last != nil {
		a.free <- last
	}
	return <-a.full
}

func (a *ahead) stop() {
	a.once.Do(func() { close(a.quit) })
	a.running.Wait()
}
