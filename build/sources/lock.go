package sources

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/lockfile"
	"github.com/kilnbuild/kiln/internal/material"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver/plan"
)

// lock is the lock file of a build.
type lock struct {
	// name is what errors call the file, and path where it is on this machine, "" for one of a context from elsewhere.
	name, path string
	// file is nil if there is none.
	file *lockfile.File
	// open has sources looked up that file does not have, in place of being refused, and those that update reports.
	open   bool
	update func(lockfile.Entry) bool
}

// LockRule says what the build needs of a lock file.
func (s *Sources) LockRule() contexts.LockRule {
	locked := s.config.Default
	if s.config.Locked != nil {
		locked = *s.config.Locked
	}
	switch {
	case s.config.Relock:
		return contexts.MayLock
	case locked && !s.config.TextOnly:
		return contexts.MustLock
	}
	return contexts.NoLock
}

// Pull says when registries are asked about images that are here. A lock file is for other machines.
func (s *Sources) Pull() Pull {
	switch {
	case s.config.Relock:
		return First
	case s.config.Pull:
		return Always
	case s.config.First:
		return First
	}
	return Missing
}

// Pull says when registries are asked about images that the store has under their names.
type Pull int

// When registries are asked.
const (
	// Missing asks about images that the store does not have.
	Missing Pull = iota
	// Always asks about all.
	Always
	// First asks about all, and takes one from the store that the registry does not have.
	First
)

// ReadLock reads the lock file that was found, if LockRule asks for one. It is called before sources are asked for that the file is about.
// The error is an *input.Error.
func (s *Sources) ReadLock(found contexts.LockFile) error {
	if s.LockRule() == contexts.NoLock {
		return nil
	}
	var f *lockfile.File
	var err error
	if found.Exists {
		if f, err = lockfile.Parse(found.Name, found.Data); err != nil {
			return &input.Error{Err: err}
		}
	}
	s.lock = &lock{name: found.Name, path: found.Path, file: f, open: s.config.Relock, update: s.config.Update}
	return nil
}

// NotLockedError is a source that a lock file does not have.
type NotLockedError struct {
	// File is the name of the lock file, and Source that of the source.
	File, Source string
}

func (e *NotLockedError) Error() string {
	return fmt.Sprintf("%s is not in %s, and the build is locked: kiln lock, with the same --target, --platform and --build-arg, adds it",
		e.Source, e.File)
}

// ChangedError is a source that is not, or not any more, what a lock file says.
type ChangedError struct {
	File, Source string
	// Locked is the digest in the file. Now is that of the source, "" if it cannot be had at all.
	Locked, Now string
	// Err is why, or nil.
	Err error
}

func (e *ChangedError) Error() string {
	accept := fmt.Sprintf("kiln lock --update %s takes what it is now", e.Source)
	if e.Now != "" {
		return fmt.Sprintf("%s has changed: %s has the digest %s, and the server's file has %s: %s", e.Source, e.File, e.Locked, e.Now, accept)
	}
	return fmt.Sprintf("%v; %s has %s for %s: %s", e.Err, e.File, e.Locked, e.Source, accept)
}

// Unwrap returns Err.
func (e *ChangedError) Unwrap() error { return e.Err }

// wanted is a source that the Dockerfile or the user names, after the policy.
type wanted struct {
	op      llb.Op
	written []string
	// entry is that of the lock file, if locked is set.
	entry  lockfile.Entry
	locked bool
}

// nameOf returns the kind and name of a source as a material; false for one that no lock file has.
func nameOf(op llb.Op) (kind material.Kind, name string, ok bool) {
	switch op := op.(type) {
	case llb.Image:
		return material.Image, op.Ref, op.Layout == ""
	case llb.HTTP:
		return material.File, op.URL, true
	case llb.Git:
		return material.Git, GitName(op), true
	}
	return "", "", false
}

// shown returns the name of a source as errors and progress have it: the query of a URL may be a signature.
func shown(kind material.Kind, name string) string {
	if kind == material.File {
		return remoteurl.Shown(name)
	}
	return name
}

type sourceKey struct {
	kind material.Kind
	name string
}

// Source implements frontend.Options.Source: the policy is applied to what is named, and what becomes of that has to be in the lock file,
// if there is one. What is returned stands for that and nothing else.
func (s *Sources) Source(written string, op llb.Op) (llb.Op, error) {
	op, err := s.Admit(op)
	if err != nil {
		return nil, err
	}
	return s.Pin(written, op)
}

// Pin returns op as the lock file has it, if there is one. Policies have no part in it.
func (s *Sources) Pin(written string, op llb.Op) (llb.Op, error) {
	kind, name, ok := nameOf(op)
	if s.lock == nil || !ok {
		return op, nil
	}
	e, locked := s.lock.file.Find(kind, name)
	if !locked && !s.lock.open {
		return nil, &NotLockedError{s.lock.name, shown(kind, name)}
	}
	if locked && s.lock.update != nil && s.lock.update(e) {
		locked = false
	}
	s.want(sourceKey{kind, name}, wanted{op: op, written: []string{written}, entry: e, locked: locked})
	if !locked {
		return op, nil
	}
	contradicts := func(flag, value string) error {
		return fmt.Errorf("%s has %s for %s, and the %s says %s: kiln lock --update %s",
			s.lock.name, e.Digest, shown(kind, name), flag, value, shown(kind, name))
	}
	switch op := op.(type) {
	case llb.Image:
		op.Digest = e.Digest
		return op, nil
	case llb.HTTP:
		if strings.HasPrefix(op.Checksum, "sha256:") && op.Checksum != e.Digest {
			return nil, contradicts("checksum", op.Checksum)
		}
		op.Checksum = cmp.Or(op.Checksum, e.Digest) // of another algorithm, it is compared with the lock file when the file is there
		return op, nil
	case llb.Git:
		commit, object := lockfile.Hash(e.Digest), lockfile.Hash(e.Object)
		if !strings.HasPrefix(commit, op.Checksum) && !strings.HasPrefix(object, op.Checksum) {
			return nil, contradicts("checksum", op.Checksum)
		}
		if remoteurl.IsHash(op.Ref) && op.Ref != commit {
			return nil, contradicts("address", op.Ref)
		}
		op.Checksum, op.FetchByCommit, op.FoundBy, op.Object = commit, true, e.Ref, object
		return op, nil
	}
	return op, nil
}

// want notes a source.
func (s *Sources) want(key sourceKey, w wanted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wanted == nil {
		s.wanted = map[sourceKey]wanted{}
	}
	if before, ok := s.wanted[key]; ok {
		w.written = append(before.written, w.written...)
	}
	s.wanted[key] = w
}

// locked returns the entry of a source; false without a lock file, or if the file is not to be obeyed for it.
func (s *Sources) locked(kind material.Kind, name string) (lockfile.Entry, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.wanted[sourceKey{kind, name}]
	return w.entry, ok && w.locked
}

// Found is told what the name of an image, in full, stands for now. A policy may have rules for names with digests: next is the image that
// is to be used in place of this one, "" for this one, and pinned the digest that it must have, "" for any.
func (s *Sources) Found(name, digest string) (next, pinned string, err error) {
	n, err := imagename.Parse(name)
	if s.config.Policy == nil || err != nil || n.Digest != "" {
		return "", "", nil
	}
	op, err := s.Admit(llb.Image{Ref: name + "@" + digest})
	if err != nil {
		return "", "", err
	}
	if next = op.(llb.Image).Ref; next == name+"@"+digest {
		return "", "", nil
	}
	if op, err = s.Pin(next, op); err != nil {
		return "", "", err
	}
	return next, op.(llb.Image).Digest, nil
}

// Explain returns the error of a build with what the lock file has to do with it.
func (s *Sources) Explain(err error) error {
	gone, ok := errors.AsType[*git.Error](err)
	if !ok || !gone.Gone {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, w := range s.wanted {
		if op, ok := w.op.(llb.Git); ok && w.locked && op.Remote == gone.Remote && strings.Contains(gone.Said, lockfile.Hash(w.entry.Digest)) {
			return &ChangedError{File: s.lock.name, Source: key.name, Locked: w.entry.Digest, Err: err}
		}
	}
	return err
}

// ImageGone returns the error of an image that cannot be had with the digest of the lock file.
func (s *Sources) ImageGone(name string, err error) error {
	e, ok := s.locked(material.Image, name)
	if !ok {
		return err
	}
	return &ChangedError{File: s.lock.name, Source: name, Locked: e.Digest, Err: err}
}

// Relocked is a lock file before and after it was made anew.
type Relocked struct {
	// Name is what messages call the file, and Path where it belongs.
	Name, Path string
	// Before is nil if there is none.
	Before, After *lockfile.File
}

// maxLocking is how many files and repositories are asked for at once to lock them.
const maxLocking = 8

// Relocked looks up, by remote, the files and commits that the lock file does not have, and returns the file with all sources that were
// asked for. stream is told of it.
func (s *Sources) Relocked(ctx context.Context, remote plan.Sources, stream *events.Stream) (*Relocked, error) {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(maxLocking)
	for _, op := range s.unresolved() {
		group.Go(func() error { return lookUp(gctx, op, remote, stream) })
	}
	if err := group.Wait(); err != nil {
		return nil, cmp.Or(context.Cause(ctx), err)
	}
	entries, err := s.entries()
	if err != nil {
		return nil, err
	}
	after := lockfile.New(entries)
	if _, err := lockfile.Parse(s.lock.name, after.Encode()); err != nil {
		return nil, &input.Error{Err: err} // a name that no lock file can have
	}
	return &Relocked{Name: s.lock.name, Path: s.lock.path, Before: s.lock.file, After: after}, nil
}

// lookUp finds out what a file or a repository has.
func lookUp(ctx context.Context, op llb.Op, remote plan.Sources, stream *events.Stream) (err error) {
	kind, name, _ := nameOf(op)
	task := stream.Task(llb.Place{Group: "internal"}, "look at "+shown(kind, name))
	defer func() { task.Done(err) }()
	ctx = events.With(ctx, task)
	switch op := op.(type) {
	case llb.HTTP:
		_, err = remote.HTTP(ctx, op)
	case llb.Git:
		_, err = remote.Git(ctx, op)
	}
	return err
}

// unresolved returns the files and commits that the lock file does not have.
func (s *Sources) unresolved() []llb.Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ops []llb.Op
	for _, w := range s.wanted {
		if _, image := w.op.(llb.Image); !image && !w.locked {
			ops = append(ops, w.op)
		}
	}
	return ops
}

// entries returns a lock file's entries of all sources that were asked for, once they are resolved.
func (s *Sources) entries() ([]lockfile.Entry, error) {
	taken := map[sourceKey]lockfile.Entry{}
	for _, m := range s.Materials() {
		e, ok := lockfile.Of(m)
		if !ok {
			continue
		}
		key := sourceKey{e.Kind, e.Name}
		if before, ok := taken[key]; ok && !before.Same(e) {
			return nil, fmt.Errorf("%s was %s and then %s while it was looked up: lock again", e.Name, before.Digest, e.Digest)
		}
		taken[key] = e
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []lockfile.Entry
	for key, w := range s.wanted {
		e, ok := taken[key]
		if w.locked {
			e, ok = w.entry, true
		}
		if !ok {
			continue // a policy has put another image in its place when it was known
		}
		e.Written = nil
		if key.kind == material.Image {
			e.Written = slices.Clone(w.written)
		}
		all = append(all, e)
	}
	return all, nil
}
