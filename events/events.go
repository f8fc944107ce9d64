// Package events says what happens in a build: typed events on one stream, which printers, the history of builds and reports read. It
// does not know what causes an event, nor how one is shown.
//
// # Order
//
// A stream is a list of events with times that do not decrease. The stream of a build begins with [Build] and ends with [Done]. What
// takes time is a vertex: a vertex of the graph under its digest, or something else, as the download of a manifest or the export of an
// image, under an ID that no vertex of the graph has. Each vertex has one [Started], then any number of other events, and one [Finished].
// A vertex on which work is done again in the same build, as the download of a context or the fetch of an image's layers may be, starts
// again after it has finished.
//
// A vertex may wait for another between [Waiting] and [Resumed]. That time is not its own: a step waits while the layers of its base image
// are fetched, and the image waits from when its manifest is known until a step needs its layers.
//
// # Encoding
//
// Each event is one JSON object on one line, as [Append] writes it and [Decode] reads it. "time" is in the form of RFC 3339. "vertex" is
// the digest of the vertex, "sha256:…"; events of the build have none. One more member holds the event, and its name says which one it
// is:
//
//	{"time":"…","build":{"version":1,"id":"…","context":"/src","dockerfile":"Dockerfile","platforms":["linux/amd64"]}}
//	{"time":"…","planned":{"steps":12}}
//	{"time":"…","vertex":"sha256:…","started":{"op":"exec","text":"RUN make","place":{"stage":"build","stages":2,"step":2,"steps":5},
//	    "inputs":["sha256:…"],"location":{"file":"Dockerfile","start":3,"end":3}}}
//	{"time":"…","vertex":"sha256:…","log":{"stream":1,"data":"aGVsbG8K"}}
//	{"time":"…","vertex":"sha256:…","transfer":{"name":"sha256:…","current":1000,"total":3000}}
//	{"time":"…","vertex":"sha256:…","transfer":{"name":"sha256:…","phase":"extracting","current":3000,"total":3000}}
//	{"time":"…","vertex":"sha256:…","waiting":{"for":"sha256:…"}}
//	{"time":"…","vertex":"sha256:…","resumed":{}}
//	{"time":"…","vertex":"sha256:…","note":{"text":"naming to docker.io/library/app:latest"}}
//	{"time":"…","vertex":"sha256:…","cached":{"key":"…"}}
//	{"time":"…","vertex":"sha256:…","missed":{"reason":"…","changes":[{"input":"arg","now":["make all"],"was":["make"]}]}}
//	{"time":"…","vertex":"sha256:…","files":{"changes":[{"path":"src/a","change":"changed","what":["content"]}],"more":2}}
//	{"time":"…","vertex":"sha256:…","again":{"differs":true,"changes":[…]}}
//	{"time":"…","warning":{"rule":"JSONArgsRecommended","text":"…","url":"…","location":{…}}}
//	{"time":"…","vertex":"sha256:…","finished":{"outputs":[{"layer":"…","content":"…"}],"key":"…","logBytes":12,"cpu":1000}}
//	{"time":"…","lost":{"events":12}}
//	{"time":"…","done":{"digest":"sha256:…","names":["docker.io/library/app:latest"],"layers":[{"layer":"…","size":1000}]}}
//
// Members that are zero are left out. Bytes are base64, durations are nanoseconds. A reader passes over members and events that it does
// not know; [Version] grows only if what a reader knows changes its meaning.
//
// # Text
//
// Text comes from Dockerfiles, images, servers and programs, and is kept as it came; only the user and password of URLs, and the values
// that package build hides, are left out. Whoever shows it to people makes it fit for a terminal first (internal/termtext).
package events

import (
	"time"

	"github.com/kilnbuild/kiln/llb"
)

// Version is that of the meaning of events, which Build carries.
const Version = 1

// Event is one thing that happened.
type Event struct {
	Time time.Time
	// Vertex is what it happened to; the zero value for events of the build.
	Vertex llb.Digest
	// Body is one of the types below, as a value; nil for an event that Decode does not know.
	Body Body
}

// Body is what an event says. The implementations are the types of this package that events hold.
type Body interface {
	// kind is the name of the member that holds it in JSON, and write writes its members.
	kind() string
	write(w *writer)
}

// Build begins the stream of a build.
type Build struct {
	Version int `json:"version"`
	// ID is the name of the build in the history; "" for a build that is not recorded.
	ID string `json:"id"`
	// Context is the build context: an absolute directory, an address without credentials, or "-". Dockerfile is as it was named.
	Context    string   `json:"context"`
	Dockerfile string   `json:"dockerfile"`
	Target     string   `json:"target"`
	Platforms  []string `json:"platforms"`
	// Names are those that the image is to have, in full.
	Names []string `json:"names"`
	// Explain says that the user asked why steps run.
	Explain bool `json:"explain"`
}

// Planned says how many vertices of a graph are about to be worked on, without those that are Idle.
type Planned struct {
	Steps int `json:"steps"`
}

// Started begins a vertex.
type Started struct {
	// Op is the kind of op, as in llb.Op; "" for what is no vertex of the graph.
	Op string `json:"op"`
	// Place and Text are those of llb.Meta.
	Place llb.Place `json:"place"`
	Text  string    `json:"text"`
	// Inputs are the vertices that it reads from, in the op's order.
	Inputs   []llb.Digest `json:"inputs"`
	Location llb.Location `json:"location"`
}

// Name returns the line of progress output: "[build 2/5] RUN make".
func (s Started) Name() string { return s.Place.String() + s.Text }

// Idle reports whether the vertex stands for something that is there already, so that it is not shown to people.
func (s Started) Idle() bool { return Idle(s.Op) }

// Idle is Started.Idle for the kind of an op.
func Idle(op string) bool {
	switch op {
	case llb.Scratch{}.Kind(), llb.Local{}.Kind(), llb.Merge{}.Kind(), llb.Passthrough{}.Kind():
		return true
	}
	return false
}

// Log is output of a vertex: any bytes, in pieces of any size. Stream is 1 for standard output, 2 for standard error. Data is only valid
// while a Sink is called.
type Log struct {
	Stream int    `json:"stream"`
	Data   []byte `json:"data"`
}

// Transfer says how much of a part of the vertex, as one blob, is done. Current and Total are bytes; Total is 0 where it is not known.
type Transfer struct {
	Name string `json:"name"`
	// Phase is what happens to the part now: a blob is Queued, comes down, and is then Extracting.
	Phase   Phase `json:"phase"`
	Current int64 `json:"current"`
	Total   int64 `json:"total"`
	// Done says that this is the last event of the phase. Without it the vertex's end is that of the phase.
	Done bool `json:"done"`
}

// Phase is a phase of a Transfer.
type Phase string

// The phases of a Transfer.
const (
	// Moving: bytes come or go.
	Moving Phase = ""
	// Sending: a client sends files.
	Sending Phase = "transferring"
	// Queued: nothing has begun.
	Queued Phase = "waiting"
	// Reading: files are read for their digests.
	Reading Phase = "reading"
	// Comparing: files of a layer are compared with its manifest, because the machine was started again.
	Comparing Phase = "comparing"
	// Extracting: all bytes are there, and are being unpacked.
	Extracting Phase = "extracting"
	// Compressing: the bytes of a layer are being written as a blob.
	Compressing Phase = "compressing"
	// Exists: the receiver has the blob already; always Done.
	Exists Phase = "already exists"
)

// Waiting says that from now on, until Resumed, the vertex only waits: for the vertex For, or, if that is zero, for whoever needs it.
type Waiting struct {
	For llb.Digest `json:"for"`
}

// Resumed ends Waiting.
type Resumed struct{}

// Note is a line about a vertex, as the name that an image was given.
type Note struct {
	Text string `json:"text"`
}

// Cached says that an earlier result is used. Key is that of its record.
type Cached struct {
	Key string `json:"key"`
}

// Missed says why there is no earlier result, before the step runs.
type Missed struct {
	Reason string `json:"reason"`
	// Changes are the inputs that are not what they were in the last build, at most MaxChanges, and More the number of others. There are
	// none where the step's last build is not known.
	Changes []Change `json:"changes"`
	More    int      `json:"more"`
	// Last is the layer that the step made in the last build.
	Last string `json:"last"`
}

// MaxChanges is how many changes of one kind an event names.
const MaxChanges = 10

// Change is an input of a step that is not what it was.
type Change struct {
	// Input is the name of the inputs in the record: "arg", "env", "root", "files".
	Input string `json:"input"`
	// Now are the values that are new, and Was those that are gone; none of both where only the order changed. Values are clipped, and
	// hidden if they are secrets. "root" and "files" are digests, of which no values are given.
	Now []string `json:"now"`
	Was []string `json:"was"`
}

// InputRoot and InputFiles are the inputs that are digests: what the step stands on, and the files that it makes.
const (
	InputRoot  = "root"
	InputFiles = "files"
)

// Files says, if it was asked for, how the files that a step made differ from those that it made in the last build.
type Files struct {
	// Changes are at most MaxChanges, and More is the number of others. There are none where the files cannot be compared any more.
	Changes []FileChange `json:"changes"`
	More    int          `json:"more"`
}

// FileChange is a file that differs.
type FileChange struct {
	// Path is relative to the root, without a leading slash.
	Path string `json:"path"`
	// Kind is Added, Removed or Changed, and What names what has changed: "type", "content", "mode", "owner", "link", "extended
	// attributes".
	Kind string   `json:"change"`
	What []string `json:"what"`
}

// The kinds of a FileChange.
const (
	Added   = "added"
	Removed = "removed"
	Changed = "changed"
)

// Again says what came of running a cached step again, to verify the cache: it made the same, or Differs, with the files that do where they
// can be compared, or it failed with an Error.
type Again struct {
	Differs bool `json:"differs"`
	Files
	Error string `json:"error"`
}

// Warning is something that the user should know.
type Warning struct {
	// Rule is the name of the check that found it; "" for what is no check's. Detail says what the check is about, URL where more is.
	Rule     string       `json:"rule"`
	Text     string       `json:"text"`
	Detail   string       `json:"detail"`
	URL      string       `json:"url"`
	Location llb.Location `json:"location"`
}

// Finished ends a vertex.
type Finished struct {
	// Outputs are what it made, or the earlier result that was used; none of what makes no layer.
	Outputs []Output `json:"outputs"`
	// Materials are what the outputs were made of that came from servers.
	Materials []Material `json:"materials"`
	// Error says why it failed. A vertex that was stopped, because of another's failure or by the user, is Canceled and has not failed.
	Error    string `json:"error"`
	Canceled bool   `json:"canceled"`
	// Err is the error itself, for sinks that know its type. It is not encoded.
	Err error `json:"-"`
	// Key is that of the record of a step that ran, or was to run.
	Key string `json:"key"`
	// LogBytes is the length of the output that is kept with the record, or of a step that failed beside it, until the step runs again.
	LogBytes int64 `json:"logBytes"`
	Resources
}

// Output is a layer that a vertex made.
type Output struct {
	Index int `json:"index"`
	// Layer is its id in the snapshot store, and Content the digest of its content; "" for one without entries.
	Layer   string `json:"layer"`
	Content string `json:"content"`
}

// Material is something that came from a server.
type Material struct {
	// URI is its address without credentials, and Digest, as "sha256:…" or "sha1:…", what was there.
	URI    string `json:"uri"`
	Digest string `json:"digest"`
}

// Resources are what the processes of a step took. They are zero where that is not known.
type Resources struct {
	// CPU is processor time, of user and system.
	CPU time.Duration `json:"cpu"`
	// Memory is the largest resident set of one process, in bytes.
	Memory int64 `json:"memory"`
}

// Lost stands for that many events that were left out, as of a history that has no room for them.
type Lost struct {
	Events int `json:"events"`
}

// Done ends the stream of a build.
type Done struct {
	// Error says why the build failed, and Canceled that the user stopped it.
	Error    string `json:"error"`
	Canceled bool   `json:"canceled"`
	// Digest is that of the image's manifest or index, Image the id that the image has in the store; "" where no image was made.
	Digest string   `json:"digest"`
	Image  string   `json:"image"`
	Names  []string `json:"names"`
	// Layers are those of the image that steps made, now or earlier.
	Layers []LayerSize `json:"layers"`
}

// LayerSize is how large the blob of a layer is, in the form in which it was exported, in bytes.
type LayerSize struct {
	// Layer is its id in the snapshot store, as in Output.
	Layer string `json:"layer"`
	Size  int64  `json:"size"`
}
