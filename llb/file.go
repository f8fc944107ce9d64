package llb

import "strings"

// File changes its root file system, input 0, by Actions, one after the other, and makes one layer of that, possibly empty: COPY,
// ADD and WORKDIR. Each action sees what those before it did.
type File struct {
	Actions []Action
}

// Kind implements Op.
func (File) Kind() string { return "file" }

// Action is one change of a File: exactly one of its fields is set. Paths are absolute. Symbolic links in the directories of a path
// are followed inside the root file system; whether the last component is followed, each action says.
type Action struct {
	Copy    *Copy    `json:",omitempty"`
	Mkfile  *Mkfile  `json:",omitempty"`
	Mkdir   *Mkdir   `json:",omitempty"`
	Remove  *Remove  `json:",omitempty"`
	Symlink *Symlink `json:",omitempty"`
}

// Attributes returns those of what the action makes.
func (a Action) Attributes() Attributes {
	switch {
	case a.Copy != nil:
		return a.Copy.Attributes
	case a.Mkfile != nil:
		return a.Mkfile.Attributes
	case a.Mkdir != nil:
		return a.Mkdir.Attributes
	case a.Symlink != nil:
		return a.Symlink.Attributes
	}
	return Attributes{}
}

// Attributes are those of what an action makes.
type Attributes struct {
	// Chown is "user[:group]" by names of the root file system's files or by numbers; "" leaves the owner as it is, root for what is new.
	Chown string
	// UsersIn and GroupsIn are the numbers of the inputs in whose files the names of users and groups are looked up; 0 is for the root.
	UsersIn  int `json:",omitempty"`
	GroupsIn int `json:",omitempty"`
	// Chmod is octal or symbolic as in chmod(1); "" leaves the mode as it is.
	Chmod string
	// Epoch, where not nil, is the time in Unix seconds of what the action makes and does not copy (SOURCE_DATE_EPOCH).
	Epoch *int64
	// Nanos are the nanoseconds of Epoch.
	Nanos int `json:",omitempty"`
}

// CopySource is one source of a Copy: Path (a file, a directory, or with wildcards) in the vertex's input number Input, at least 1.
type CopySource struct {
	Input int
	Path  string
	// AllowMissing makes a path without wildcards that does not exist select nothing.
	AllowMissing bool
	// Unpack puts the content of a file that is an archive in place of it: ADD of a local file.
	Unpack bool
}

// Copy copies files of other inputs, with their owners, but for those of a Local, which become root's.
type Copy struct {
	Sources []CopySource
	// Dest is followed where it is a symbolic link; a trailing slash says that it is a directory.
	Dest string
	Attributes
	// Exclude are patterns in the syntax of .dockerignore, relative to each source directory.
	Exclude []string
	// Parents keeps the sources' parent directories, from a "/./" on.
	Parents bool
	// Link ignores what is at the destination: input 0 is Scratch and symbolic links of the final root are not followed.
	Link bool
	// NoFollow copies a source that is a symbolic link as a link, in place of what it leads to.
	NoFollow bool `json:",omitempty"`
	// AsDir copies a source that is a directory, in place of what is in it: into Dest if something is there, and else as Dest.
	AsDir bool `json:",omitempty"`
	// NoWildcards takes the paths of sources as they are, and MustMatch makes it an error that one with wildcards selects nothing.
	NoWildcards bool `json:",omitempty"`
	MustMatch   bool `json:",omitempty"`
	// NoParents makes it an error that the directory of Dest is missing.
	NoParents bool `json:",omitempty"`
	// Include are patterns as Exclude; if there are any, what they do not match in a source directory is left out. Required are absolute
	// paths in the source: with Include, one with which the path of nothing that is copied begins is an error.
	Include  []string `json:",omitempty"`
	Required []string `json:",omitempty"`
	// Replace replaces what is at a destination if it is of another kind than what is copied, which is an error without it.
	Replace bool `json:",omitempty"`
	// Dated gives Epoch to what is copied, too.
	Dated bool `json:",omitempty"`
}

// Mkfile makes a regular file, mode 0644, in the place of what is there: a heredoc of COPY or ADD.
type Mkfile struct {
	// Path and Link are as Copy's Dest and Link: where Path is a directory, the file is made in it, as Name.
	Path string
	Name string
	Link bool
	// Content are the file's bytes.
	Content []byte
	Attributes
	// NoParents makes it an error that the directory of Path is missing.
	NoParents bool `json:",omitempty"`
}

// Mkdir makes a directory, mode 0755, and its missing parents: WORKDIR. Path is followed where it is a symbolic link. A directory
// that exists is left as it is.
type Mkdir struct {
	Path string
	Attributes
	// NoParents makes it an error that a parent is missing; whatever is at Path is then left as it is.
	NoParents bool `json:",omitempty"`
}

// Remove removes what is at Path, which is not followed, and all that is in it.
type Remove struct {
	Path string
	// AllowMissing makes it no error that nothing is there, and AllowWildcard lets Path have wildcards, which may select nothing.
	AllowMissing  bool
	AllowWildcard bool
}

// Symlink makes a symbolic link to Target at Path, where nothing may be. Missing directories of Path are an error.
type Symlink struct {
	Path   string
	Target string
	Attributes
}

// Selections returns what the vertices below some outputs select of each Local that is not Filtered, by its name: paths and wildcards.
func Selections(roots []Output) map[string][]string {
	selected := map[string][]string{}
	for v := range Vertices(roots) {
		file, ok := v.op.(File)
		if !ok {
			continue
		}
		for _, a := range file.Actions {
			if a.Copy == nil {
				continue
			}
			for _, s := range a.Copy.Sources {
				if local, ok := v.inputs[s.Input].Vertex.op.(Local); ok && !local.Filtered() {
					selected[local.Name] = append(selected[local.Name], s.Path)
				}
			}
		}
	}
	return selected
}

// Needs calls f for each use of a Local by the vertices below some outputs, with the path without wildcards below which it is; "" for all
// of the Local.
func Needs(roots []Output, f func(l Local, path string)) {
	need := func(o Output, path string) {
		if local, ok := o.Vertex.op.(Local); ok {
			f(local, literal(path))
		}
	}
	for _, o := range roots {
		need(o, "")
	}
	for v := range Vertices(roots) {
		copied := map[int]bool{}
		if file, ok := v.op.(File); ok {
			for _, a := range file.Actions {
				if a.Copy == nil {
					continue
				}
				for _, s := range a.Copy.Sources {
					copied[s.Input] = true
					need(v.inputs[s.Input], s.Path)
				}
			}
		}
		for i, in := range v.inputs {
			if !copied[i] {
				need(in, "")
			}
		}
	}
}

// literal returns a path up to its first element with a character that a pattern may have, without slashes at the ends; "" for the top.
func literal(p string) string {
	var kept []string
	for _, e := range strings.Split(p, "/") {
		if strings.ContainsAny(e, `*?[]\!`) {
			break
		}
		if e == ".." && len(kept) > 0 {
			kept = kept[:len(kept)-1]
		} else if e != "" && e != "." && e != ".." {
			kept = append(kept, e)
		}
	}
	return strings.Join(kept, "/")
}
