// Package work has the values of solver.Work: what a Planner hands to an Executor, which may be another process. They are plain
// values, and all that decides a result is in them. Secrets, agents and contexts are not: those are the session's.
package work

import (
	"encoding/json"
	"fmt"

	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// File is the work of an llb.File.
type File struct {
	Op llb.File
	In []solver.Ref
	// Planned is the digest of the layer's content, and Identity that of the layer, as if the owners that are named were Unknown.
	// They are zero if Archives are unpacked: what is in those is not known before.
	Planned  [32]byte
	Identity [32]byte
	// Archives and Copied are the files of contexts that are unpacked, and those that are copied beside archives, in words. That they
	// are the same again shows that a context was not changed meanwhile.
	Archives []string
	Copied   []string
}

// Exec is the work of an llb.Exec.
type Exec struct {
	Op llb.Exec
	// Proxy is Op's, which is not part of its JSON.
	Proxy []string
	// Shell is Op's, which is not part of its JSON.
	Shell []string
	// Limits are Op's, which are not part of its JSON.
	Limits llb.ExecLimits
	// NoCache is that of llb.Meta.
	NoCache bool
	// Platform is that of llb.Meta.
	Platform string
	In       []solver.Ref
}

// HTTP is the work of an llb.HTTP.
type HTTP struct {
	Op llb.HTTP
	// User is Op's, which is not part of its JSON.
	User string
	// Digest is that of the file, "sha256:…", and Modified its time in RFC 3339; "" for none.
	Digest   string
	Modified string
}

// Git is the work of an llb.Git.
type Git struct {
	Op llb.Git
	// User is Op's, which is not part of its JSON.
	User string
	// Commit is the hash of the commit. Name is the full name of the ref that it was found by, and Object what that names.
	Commit string
	Name   string
	Object string
	// Bundle is the root file system with the bundle that the commit comes from; the zero Ref for none.
	Bundle solver.Ref
}

// Blob is the work of an llb.Blob.
type Blob struct {
	Op llb.Blob
}

// Explicit makes layers that hide nothing but what they are known to lie on: for each of Layers one with whiteouts in the place of
// opaque directories, or none if it makes no difference.
type Explicit struct {
	// Layers are root file systems whose uppermost layer is meant.
	Layers []Layer
}

// Layer is a layer of an Explicit.
type Layer struct {
	Root solver.Ref
	// AsIs says that the layer can be used as it is.
	AsIs bool
}

// Diff makes a layer of what is different in Upper from Lower.
type Diff struct {
	Lower solver.Ref
	Upper solver.Ref
}

// encoded is the JSON form: one of the fields is set.
type encoded struct {
	File     *File     `json:"file,omitempty"`
	Exec     *Exec     `json:"exec,omitempty"`
	HTTP     *HTTP     `json:"http,omitempty"`
	Git      *Git      `json:"git,omitempty"`
	Blob     *Blob     `json:"blob,omitempty"`
	Explicit *Explicit `json:"explicit,omitempty"`
	Diff     *Diff     `json:"diff,omitempty"`
}

// Encode returns work as JSON.
func Encode(w solver.Work) ([]byte, error) {
	var e encoded
	switch w := w.(type) {
	case File:
		e.File = &w
	case Exec:
		e.Exec = &w
	case HTTP:
		e.HTTP = &w
	case Git:
		e.Git = &w
	case Blob:
		e.Blob = &w
	case Explicit:
		e.Explicit = &w
	case Diff:
		e.Diff = &w
	default:
		return nil, fmt.Errorf("encode work: unknown type %T", w)
	}
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode work: %w", err)
	}
	return data, nil
}

// Decode reads what Encode wrote.
func Decode(data []byte) (solver.Work, error) {
	var e encoded
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("decode work: %w", err)
	}
	switch {
	case e.File != nil:
		return *e.File, nil
	case e.Exec != nil:
		e.Exec.Op.Proxy, e.Exec.Op.Shell, e.Exec.Op.Limits = e.Exec.Proxy, e.Exec.Shell, e.Exec.Limits
		return *e.Exec, nil
	case e.HTTP != nil:
		e.HTTP.Op.User = e.HTTP.User
		return *e.HTTP, nil
	case e.Git != nil:
		e.Git.Op.User = e.Git.User
		return *e.Git, nil
	case e.Blob != nil:
		return *e.Blob, nil
	case e.Explicit != nil:
		return *e.Explicit, nil
	case e.Diff != nil:
		return *e.Diff, nil
	}
	return nil, fmt.Errorf("decode work: no work")
}
