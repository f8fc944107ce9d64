package bake

import "fmt"

// Limits of what targets have together.
const (
	maxValues     = 1_000_000 // texts, truth values, and entries of mappings and lists
	maxValueBytes = 64 << 20  // of their keys and texts
)

// tally counts what is joined into targets, each value as often as a target inherits it: what a few lines say can be inherited by
// thousands of targets.
type tally struct{ values, bytes int64 }

// merge sets what another target says on top of what a target says, unless the targets would have too much together.
func (n *tally) merge(name string, to, over *Target) error {
	n.values++
	n.addLists(to) // they are made anew
	n.addLists(over)
	n.addOthers(over)
	switch {
	case n.values > maxValues:
		return fmt.Errorf("target %s: all targets together have more than the %d values that are allowed, with what they inherit",
			name, maxValues)
	case n.bytes > maxValueBytes:
		return fmt.Errorf("target %s: the values of all targets together are larger than the %d MiB that are allowed, with what they inherit",
			name, maxValueBytes>>20)
	}
	to.merge(over)
	return nil
}

func (n *tally) add(texts ...string) {
	n.values++
	for _, s := range texts {
		n.bytes += int64(len(s))
	}
}

func (n *tally) addLists(t *Target) {
	for _, a := range attributes() {
		switch list := a.field(t).(type) {
		case *[]string:
			for _, s := range *list {
				n.add(s)
			}
		case *[]Entry:
			for _, e := range *list {
				for key, value := range e {
					n.add(key, value)
				}
			}
		}
	}
}

func (n *tally) addOthers(t *Target) {
	for _, a := range attributes() {
		switch f := a.field(t).(type) {
		case *string:
			n.add(*f)
		case **string:
			if *f != nil {
				n.add(**f)
			}
		case *map[string]*string:
			for key, value := range *f {
				n.add(key)
				if value != nil {
					n.bytes += int64(len(*value))
				}
			}
		}
	}
}
