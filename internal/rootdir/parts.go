package rootdir

import (
	"path/filepath"
	"slices"
)

// The names of what lies in the root directory. Nothing else does: whatever is added is added here.
const (
	Blobs      = "blobs"      // of the image store, which makes the root directory an OCI image layout
	Layers     = "layers"     // a directory for each layer
	Entries    = "entries"    // a manifest for each layer of a base image that is not unpacked
	Records    = "records"    // of steps, with their logs
	Compressed = "compressed" // notes of which blob became which by compression
	Builds     = "builds"     // the history
	Context    = "context"    // digests of the files of each build context
	Received   = "received"   // files of directories that clients sent
	Mounts     = "mounts"     // cache mounts
	Git        = "git"        // mirrors of repositories
	HTTP       = "http"       // what servers said of files
	Resolved   = "resolved"   // what registries said of base images
	Scans      = "scans"      // what was found in layers for SBOMs
	Lists      = "lists"      // of manifests, as kiln manifest makes them
	Locks      = "locks"      // of keys and layers that are being made
	Tmp        = "tmp"        // what is unfinished, a directory for each process
	Layout     = "oci-layout" // a file
	Index      = "index.json" // a file: the list of images
	IDs        = "ids"        // a file: the ids that owners have outside of a user namespace
	Collected  = "gc"         // a file: its time is when it was last looked whether there is too much
)

// IndexLock is the one file in Locks that stays: the lock of Index.
const IndexLock = "index"

// names are all of them.
var names = []string{
	Blobs, Layers, Entries, Records, Compressed, Builds, Context, Received, Mounts, Git, HTTP, Resolved, Scans, Lists, Locks, Tmp, Layout,
	Index, IDs, Collected,
}

// Known reports whether a name in the root directory is one of kiln's.
func Known(name string) bool { return slices.Contains(names, name) }

// Path returns the path of a part of the root directory root.
func Path(root, name string) string { return filepath.Join(root, name) }
