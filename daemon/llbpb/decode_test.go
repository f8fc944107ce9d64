package llbpb

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/llb"
)

// definition is put together op by op.
type definition struct {
	pb.Definition
	t *testing.T
}

func newDefinition(t *testing.T) *definition {
	return &definition{t: t, Definition: pb.Definition{Metadata: map[string]*pb.OpMetadata{}}}
}

// add adds an op and returns its first output as an input.
func (d *definition) add(o *pb.Op) *pb.Input {
	data, err := o.Marshal()
	if err != nil {
		d.t.Fatal(err)
	}
	d.Def = append(d.Def, data)
	return &pb.Input{Digest: digest.FromBytes(data).String()}
}

// ask says which output is asked for.
func (d *definition) ask(in *pb.Input) *definition {
	d.add(&pb.Op{Inputs: []*pb.Input{in}})
	return d
}

func (d *definition) source(id string, attrs ...string) *pb.Input {
	s := &pb.SourceOp{Identifier: id, Attrs: map[string]string{}}
	for i := 0; i < len(attrs); i += 2 {
		s.Attrs[attrs[i]] = attrs[i+1]
	}
	return d.add(&pb.Op{Op: &pb.Op_Source{Source: s}})
}

func (d *definition) file(actions []*pb.FileAction, inputs ...*pb.Input) *pb.Input {
	return d.add(&pb.Op{Inputs: inputs, Op: &pb.Op_File{File: &pb.FileOp{Actions: actions}}})
}

func (d *definition) exec(e *pb.ExecOp, inputs ...*pb.Input) *pb.Input {
	if e.Meta == nil {
		e.Meta = &pb.Meta{Args: []string{"true"}, Cwd: "/", Env: []string{"PATH=/"}}
	}
	return d.add(&pb.Op{Inputs: inputs, Op: &pb.Op_Exec{Exec: e}})
}

func output(in *pb.Input, index int64) *pb.Input { return &pb.Input{Digest: in.Digest, Index: index} }

func mkdir(in, out int64, name string) *pb.FileAction {
	return &pb.FileAction{
		Input: in, SecondaryInput: -1, Output: out, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: name, Mode: 0o755,
			Timestamp: -1}},
	}
}

func copyAction(in, from, out int64, c *pb.FileActionCopy) *pb.FileAction {
	return &pb.FileAction{Input: in, SecondaryInput: from, Output: out, Action: &pb.FileAction_Copy{Copy: c}}
}

var root = &pb.Mount{Dest: "/"}

// shape describes an output: the kind of its vertex, as JSON its op, and its inputs.
func shape(o llb.Output) string {
	var inputs []string
	for _, in := range o.Vertex.Inputs() {
		inputs = append(inputs, shape(in))
	}
	data, err := json.Marshal(o.Vertex.Op())
	if err != nil {
		panic(err)
	}
	s := o.Vertex.Op().Kind()
	if string(data) != "{}" {
		s += string(data)
	}
	if o.Index > 0 {
		s += fmt.Sprint("#", o.Index)
	}
	if len(inputs) > 0 {
		s += "(" + strings.Join(inputs, ", ") + ")"
	}
	return s
}

// The ops of a definition are these of kiln.
func TestDecode(t *testing.T) {
	options := Options{Host: llb.Platform{OS: "linux", Architecture: "amd64"}, Session: "mine"}
	sum := digest.FromString("x").String()
	for name, c := range map[string]struct {
		make func(d *definition) *pb.Input
		want []string // what the shape has
	}{
		"image": {func(d *definition) *pb.Input {
			return d.source("docker-image://docker.io/library/busybox:latest@"+sum, "image.resolvemode", "pull", "image.layerlimit", "2",
				"image.recordtype", "internal")
		}, []string{`"Ref":"docker.io/library/busybox:latest"`, `"Digest":"` + sum, `"Pull":"always"`, `"Layers":2`}},
		"image without digest": {func(d *definition) *pb.Input { return d.source("docker-image://busybox") },
			[]string{`"Ref":"docker.io/library/busybox:latest"`, `"Platform":"linux/amd64"`}},
		"layout": {func(d *definition) *pb.Input {
			return d.source("oci-layout://x@"+sum, "oci.store", "s", "oci.session", "mine")
		},
			[]string{`"Store":"s"`, `"Digest":"` + sum, `"Layout":""`}},
		"a directory as a root": {func(d *definition) *pb.Input {
			return d.source("local://ctx", "local.session", "mine", "local.unique", "u", "local.followpaths", `["a"]`, "local.includepattern",
				`["b"]`)
		}, []string{`file{`, `(scratch, local{"Name":"ctx","Include":["b"],"Follow":["a"]})`}},
		"a directory of another client": {func(d *definition) *pb.Input { return d.source("local://ctx", "local.session", "other") },
			[]string{`"Session":"other"`}},
		"http": {func(d *definition) *pb.Input {
			return d.source("https://u:p@host/dir/file?q", "http.perm", "0755", "http.uid", "7")
		},
			[]string{`file{`, `"Chmod":"0755"`, `"Chown":"7:0"`, `http{"URL":"https://host/dir/file?q","Filename":"file"`}},
		"git": {func(d *definition) *pb.Input {
			return d.source("git://host/r#main:sub", "git.fullurl", "https://host/r.git", "git.authtokensecret", "GIT_AUTH_TOKEN", "git.keepgitdir",
				"true")
		}, []string{`git{"Remote":"https://host/r.git","Ref":"main","Subdir":"sub"`, `"KeepGitDir":true`, `(scratch)`}},
		"several outputs": {func(d *definition) *pb.Input {
			img := d.source("docker-image://busybox")
			return output(d.exec(&pb.ExecOp{Mounts: []*pb.Mount{
				{Dest: "/", Output: 0}, {Dest: "/a", Input: 0, Output: -1, Readonly: true}, {Dest: "/b", Input: -1, Output: 1},
				{Dest: "/c", Input: 0, Output: 2, Selector: "dir"},
			}}, img), 2)
		}, []string{"exec{", "#2(image", `"Target":"/b","Input":2,"Source":"/","ReadOnly":false,"Output":1`,
			`"Target":"/c","Input":3,"Source":"/dir","ReadOnly":false,"Output":2`}},
		"a read-only mount as an output": {func(d *definition) *pb.Input {
			a, b := d.source("docker-image://a"), d.source("docker-image://b")
			return d.exec(&pb.ExecOp{Mounts: []*pb.Mount{{Dest: "/", Output: 1}, {Dest: "/b", Input: 1, Output: 0, Readonly: true}}}, a, b)
		}, []string{`image{"Ref":"docker.io/library/b:latest"`}},
		"a root of nothing, status and PATH": {func(d *definition) *pb.Input {
			return d.exec(&pb.ExecOp{Meta: &pb.Meta{Args: []string{"/x"}, ValidExitCodes: []int32{0, 9}},
				Mounts: []*pb.Mount{{Dest: "/", Input: -1, Readonly: true}}})
		}, []string{`"ExitStatus":[0,9]`, defaultPath, `"ReadOnly":true`, `(scratch)`}},
		"a cache as front ends have it": {func(d *definition) *pb.Input {
			fresh := d.file([]*pb.FileAction{{Input: -1, SecondaryInput: -1, Output: 0, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{
				Path: "/cache", Mode: 0o700, Timestamp: -1,
				Owner: &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: 7}}, Group: &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: 8}}},
			}}}})
			return d.exec(&pb.ExecOp{Mounts: []*pb.Mount{
				{Dest: "/", Input: 0}, {Dest: "/c", Input: 1, Output: -1, Selector: "/cache", MountType: pb.MountType_CACHE,
					CacheOpt: &pb.CacheOpt{ID: "/id"}},
			}}, d.source("docker-image://a"), fresh)
		}, []string{`"Input":0,"Source":"/","ReadOnly":false,"Output":0,"CacheID":"id","Sharing":"shared","Mode":448,"UID":7,"GID":8`}},
		"secrets, ssh, tmpfs": {func(d *definition) *pb.Input {
			return d.exec(&pb.ExecOp{
				Mounts: []*pb.Mount{
					root, {Dest: "s", Input: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "f", Mode: 0o400, Optional: true}},
					{Dest: "/ssh", Input: -1, MountType: pb.MountType_SSH, SSHOpt: &pb.SSHOpt{}},
					{Dest: "/t", Input: -1, Output: -1, MountType: pb.MountType_TMPFS},
				},
				Secretenv: []*pb.SecretEnv{{ID: "e", Name: "E"}},
			}, d.source("docker-image://a"))
		}, []string{`"ID":"e","Env":"E","Required":true`, `"Target":"/s"`, `"ID":"f","Env":"","Required":false`, `"Type":"ssh"`, `"ID":"default"`,
			`"Type":"tmpfs"`}},
		"actions in a row are one vertex": {func(d *definition) *pb.Input {
			return d.file([]*pb.FileAction{mkdir(-1, -1, "a"), mkdir(0, -1, "b"), mkdir(1, 0, "c")})
		}, []string{`"Path":"/a"`, `"Path":"/c"`, `}]}(scratch)`}},
		"an action on two others": {func(d *definition) *pb.Input {
			return d.file([]*pb.FileAction{mkdir(-1, -1, "a"), mkdir(-1, -1, "b"), copyAction(0, 1, 0, &pb.FileActionCopy{
				Src: "/b", Dest: "x/", Mode: -1, Timestamp: 1500000000, DirCopyContents: true, FollowSymlink: true, AllowWildcard: true,
				CreateDestPath: true,
			})})
		}, []string{`{"Mkdir":{"Path":"/a"`, `{"Copy":{"Sources":[{"Input":1,"Path":"/b"`, `"Dest":"/x/"`, `"Epoch":1,"Nanos":500000000`,
			`"MustMatch":true`, `"Dated":true`, `"Path":"/b","Chown":"","Chmod":"","Epoch":null,"NoParents":true}}]}(scratch))`}},
		"two outputs": {func(d *definition) *pb.Input {
			return output(d.file([]*pb.FileAction{mkdir(-1, 1, "a"), mkdir(0, 0, "b")}), 0)
		}, []string{`"Path":"/b"`, `(file{"Actions":[{"Mkdir":{"Path":"/a"`}},
		"owners of another input": {func(d *definition) *pb.Input {
			name := &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "me", Input: 1}}}
			return d.file([]*pb.FileAction{{Input: 0, SecondaryInput: -1, Output: 0, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{
				Path: "d", Mode: 0o700, Timestamp: -1, Owner: &pb.ChownOpt{User: name},
			}}}}, d.source("docker-image://a"), d.source("docker-image://b"))
		}, []string{`"Chown":"me","UsersIn":1,"GroupsIn":1,"Chmod":"0700"`}},
		"merge, diff, passthrough": {func(d *definition) *pb.Input {
			a, b := d.source("docker-image://a"), d.source("docker-image://b")
			diff := d.add(&pb.Op{Inputs: []*pb.Input{a, b}, Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{},
				Upper: &pb.UpperDiffInput{Input: 1}}}})
			merge := d.add(&pb.Op{Inputs: []*pb.Input{a, diff}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{}, {Input: 1}}}}})
			return output(d.add(&pb.Op{Inputs: []*pb.Input{a, merge}, Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "p",
				Outputs: []int64{0, 1}}}}), 1)
		}, []string{`passthrough{"Outputs":[0,1]}#1(`, `merge(image{"Ref":"docker.io/library/a:latest"`, `, diff(image`}},
		"nothing to be taken off": {func(d *definition) *pb.Input {
			a := d.source("docker-image://a")
			return d.add(&pb.Op{Inputs: []*pb.Input{a}, Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: -1},
				Upper: &pb.UpperDiffInput{}}}})
		}, []string{`image{`}},
	} {
		d := newDefinition(t)
		d.ask(c.make(d))
		g, err := Decode(t.Context(), &d.Definition, options)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := shape(g.Output)
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s is\n%s\nwithout\n%s", name, got, want)
			}
		}
		same(t, name, g.Output)
	}
}

// What cannot be read is an error of the op.
func TestDecodeErrors(t *testing.T) {
	many := func(n int) func(d *definition) *pb.Input {
		return func(d *definition) *pb.Input {
			for i := range n {
				d.source(fmt.Sprint("docker-image://a:", i))
			}
			return d.source("docker-image://a")
		}
	}
	image := func(attrs ...string) func(d *definition) *pb.Input {
		return func(d *definition) *pb.Input { return d.source("docker-image://a", attrs...) }
	}
	mounts := func(all ...*pb.Mount) func(d *definition) *pb.Input {
		return func(d *definition) *pb.Input { return d.exec(&pb.ExecOp{Mounts: all}, d.source("docker-image://a")) }
	}
	actions := func(all ...*pb.FileAction) func(d *definition) *pb.Input {
		return func(d *definition) *pb.Input { return d.file(all, d.source("docker-image://a")) }
	}
	unknown := func(number protowire.Number, value string) func(d *definition) *pb.Input {
		return func(d *definition) *pb.Input {
			o := &pb.Op{Inputs: []*pb.Input{d.source("docker-image://a")}, Op: &pb.Op_File{File: &pb.FileOp{}}}
			o.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), value))
			return d.add(o)
		}
	}
	for name, c := range map[string]struct {
		make func(d *definition) *pb.Input
		want string
	}{
		"a missing input":             {func(*definition) *pb.Input { return &pb.Input{Digest: digest.FromString("x").String()} }, "is missing"},
		"an output that is not there": {func(d *definition) *pb.Input { return output(d.source("docker-image://a"), 1) }, "none with index 1"},
		"a negative output":           {func(d *definition) *pb.Input { return output(d.source("docker-image://a"), -1) }, "no output -1"},
		"too many ops":                {many(MaxOps), "more than 50000 ops"},
		"no op": {func(d *definition) *pb.Input { return d.add(&pb.Op{Platform: &pb.Platform{OS: "x"}}) },
			"its kind is not known"},
		"no identifier":           {func(d *definition) *pb.Input { return d.source("x") }, "no identifier of a source"},
		"an unknown source":       {func(d *definition) *pb.Input { return d.source("s3://x") }, "a source s3:// is not supported"},
		"no image":                {func(d *definition) *pb.Input { return d.source("docker-image://A B") }, "A B"},
		"an unknown attribute":    {image("image.new", "1"), `the attribute "image.new" is not supported`},
		"a wrong limit of layers": {image("image.layerlimit", "0"), "invalid layer limit 0"},
		"a layout without digest": {func(d *definition) *pb.Input { return d.source("oci-layout://x") }, "no digest of an image"},
		"a file as another": {func(d *definition) *pb.Input { return d.source("https://h/f", "http.filename", "../x") },
			"no name of a file"},
		"a header of another": {func(d *definition) *pb.Input { return d.source("https://h/f", "http.header.host", "x") },
			`the header "host"`},
		"no repository": {func(d *definition) *pb.Input { return d.source("git://--upload-pack=x") }, ""},
		"a source with inputs": {func(d *definition) *pb.Input {
			return d.add(&pb.Op{Inputs: []*pb.Input{d.source("docker-image://a")}, Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://x"}}})
		}, "it has 1 inputs"},
		"a worker": {func(d *definition) *pb.Input {
			return d.add(&pb.Op{Constraints: &pb.WorkerConstraints{Filter: []string{"x"}},
				Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://x"}}})
		}, "a constraint on workers"},
		"no arguments": {func(d *definition) *pb.Input {
			return d.exec(&pb.ExecOp{Meta: &pb.Meta{}, Mounts: []*pb.Mount{root}}, d.source("docker-image://a"))
		}, "no arguments"},
		"no root":               {mounts(&pb.Mount{Dest: "/a"}), "no mount at /"},
		"two roots":             {mounts(root, &pb.Mount{Dest: "/", Output: 1}), "two mounts at /"},
		"a root of no input":    {mounts(&pb.Mount{Dest: "/", Input: 7}), "it has no input 7"},
		"a cache as the root":   {mounts(&pb.Mount{Dest: "/", MountType: pb.MountType_CACHE}), "its type is CACHE"},
		"a mount of no input":   {mounts(root, &pb.Mount{Dest: "/a", Input: -2, Output: -1}), "it has no input -2"},
		"an output twice":       {mounts(root, &pb.Mount{Dest: "/a"}), "cannot be output 0"},
		"a gap between outputs": {mounts(root, &pb.Mount{Dest: "/a", Output: 2}), "none with index 1"},
		"a mount over /proc":    {mounts(root, &pb.Mount{Dest: "/proc/../proc/x", Output: -1}), "nothing can be mounted"},
		"a mount over the root": {mounts(root, &pb.Mount{Dest: "//", Output: -1}), "nothing can be mounted"},
		"a secret without id":   {mounts(root, &pb.Mount{Dest: "/a", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{}}), "has no id"},
		"a cache of nobody":     {mounts(root, &pb.Mount{Dest: "/a", Output: -1, MountType: pb.MountType_CACHE}), "names no cache"},
		"an unknown mount":      {mounts(root, &pb.Mount{Dest: "/a", MountType: 77}), "its type 77"},
		"a host's network": {func(d *definition) *pb.Input {
			return d.exec(&pb.ExecOp{Mounts: []*pb.Mount{root}, Network: pb.NetMode_HOST}, d.source("docker-image://a"))
		}, "network.host is not allowed"},
		"privileges": {func(d *definition) *pb.Input {
			return d.exec(&pb.ExecOp{Mounts: []*pb.Mount{root}, Security: pb.SecurityMode_INSECURE}, d.source("docker-image://a"))
		}, "security.insecure is not allowed"},
		"a host that is none": {func(d *definition) *pb.Input {
			return d.exec(&pb.ExecOp{Meta: &pb.Meta{Args: []string{"x"}, ExtraHosts: []*pb.HostIP{{Host: "a\n1.2.3.4 b", IP: "1.2.3.4"}}},
				Mounts: []*pb.Mount{root}}, d.source("docker-image://a"))
		}, "not the name of a host"},
		"no actions":               {actions(), "no actions"},
		"no outputs":               {actions(mkdir(0, -1, "a")), "no outputs"},
		"an action on a later one": {actions(mkdir(2, 0, "a"), mkdir(0, -1, "b")), "made by a later one"},
		"an action on itself":      {actions(mkdir(1, 0, "a")), "made by a later one"},
		"an action on nothing":     {actions(mkdir(9, 0, "a")), "no input 9"},
		"one output of two":        {actions(mkdir(0, 0, "a"), mkdir(0, 0, "b")), "cannot be output 0"},
		"a root that is removed": {actions(&pb.FileAction{Output: 0, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "."}}}),
			"the root cannot be removed"},
		"a zero byte": {actions(mkdir(0, 0, "a\x00b")), "no absolute path"},
		"an owner that is none": {actions(&pb.FileAction{Output: 0, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "a",
			Owner: &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "a:b"}}}}}}}), "no name of an owner"},
		"an owner of no input": {actions(&pb.FileAction{Output: 0, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "a",
			Owner: &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "a", Input: 5}}}}}}}), "no input 5"},
		"a merge of other inputs": {func(d *definition) *pb.Input {
			return d.add(&pb.Op{Inputs: []*pb.Input{d.source("docker-image://a")},
				Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 4}}}}})
		}, "no input 4"},
		"a diff of nothing": {func(d *definition) *pb.Input { return d.add(&pb.Op{Op: &pb.Op_Diff{Diff: &pb.DiffOp{}}}) },
			"no lower or no upper"},
		"a passthrough of no input": {func(d *definition) *pb.Input {
			return d.add(&pb.Op{Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "x", Outputs: []int64{0}}}})
		}, "no input 0"},
		"a build that nobody can read": {func(d *definition) *pb.Input {
			return d.add(&pb.Op{Inputs: []*pb.Input{d.source("docker-image://a")},
				Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: -1, Inputs: map[string]*pb.BuildInput{pb.LLBDefinitionInput: {}}}}})
		}, "is not supported"},
		"an unknown field":          {unknown(7777, "x"), "the field 7777"},
		"an extension that is none": {unknown(extensionField, "x"), "read the field"},
		"an extension of no input":  {unknown(extensionField, `{"Inputs":[3],"File":{}}`), "no input 3"},
		"an extension of another kind": {unknown(extensionField,
			`{"Inputs":[0],"Exec":{"Args":["x"],"Cwd":"/","Network":"host","Security":"sandbox"}}`), "not one thing"},
		"an extension with too much":  {unknown(extensionField, `{"Inputs":[0],"Image":{"Layout":"/"}}`), "unknown field"},
		"an empty extension":          {unknown(extensionField, `{"Inputs":[0],"File":{"Actions":[{}]}}`), "not one of those"},
		"an extension without inputs": {unknown(extensionField, `{"File":{"Actions":[{"Mkdir":{"Path":"/a"}}]}}`), "no inputs"},
	} {
		d := newDefinition(t)
		d.ask(c.make(d))
		_, err := Decode(t.Context(), &d.Definition, Options{})
		if _, ok := errors.AsType[*Error](err); !ok || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s: the error is %v, want %q", name, err, c.want)
		}
	}
	for name, def := range map[string]*pb.Definition{
		"nothing":             nil,
		"no ops":              {},
		"bytes that are none": {Def: [][]byte{{0xff}}},
		"no question":         {Def: newDefinition(t).ask(newDefinition(t).source("docker-image://a")).Def},
		"a location in nothing": {Def: [][]byte{nil},
			Source: &pb.Source{Locations: map[string]*pb.Locations{"x": {Locations: []*pb.Location{{SourceIndex: 1}}}}}},
	} {
		if _, err := Decode(t.Context(), def, Options{}); err == nil {
			t.Errorf("%s is read", name)
		}
	}
}

// What is deep, wide, or long when it is read is refused before that takes time or memory.
func TestDecodeLimits(t *testing.T) {
	deep := newDefinition(t)
	in := deep.source("docker-image://a")
	for i := range MaxDepth + 2 {
		in = deep.file([]*pb.FileAction{mkdir(0, 0, fmt.Sprint(i))}, in)
	}
	slices.Reverse(deep.Def)
	deep.ask(in)

	wide := newDefinition(t)
	wide.Def = [][]byte{slices.Concat(slices.Repeat([][]byte{{1<<3 | 2, 0}}, MaxFields+1)...)}

	long := newDefinition(t)
	for i := range 9 {
		long.Def = append(long.Def, make([]byte, MaxBytes/8+i))
	}
	nested := []byte{}
	for range 100 {
		nested = protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType),
			protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType),
				protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), nested)))
	}
	inside := newDefinition(t)
	nested = protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), nested)
	inside.Def = [][]byte{protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), nested)}
	for name, d := range map[string]*definition{"ops in a row": deep, "fields": wide, "bytes": long, "messages inside each other": inside} {
		_, err := Decode(t.Context(), &d.Definition, Options{})
		if limit, ok := errors.AsType[*LimitError](err); !ok || limit.What != name {
			t.Errorf("%s: the error is %v", name, err)
		}
	}
}

// A build that another op defines is read from its result, and has that op's digest.
func TestBuildOp(t *testing.T) {
	inner := newDefinition(t)
	inner.ask(inner.source("docker-image://b"))
	data, err := proto.Marshal(&inner.Definition)
	if err != nil {
		t.Fatal(err)
	}
	d := newDefinition(t)
	build := d.add(&pb.Op{Inputs: []*pb.Input{d.source("docker-image://a")}, Op: &pb.Op_Build{Build: &pb.BuildOp{
		Builder: -1, Inputs: map[string]*pb.BuildInput{pb.LLBDefinitionInput: {}}, Attrs: map[string]string{pb.AttrLLBDefinitionFilename: "def"},
	}}})
	d.ask(build)
	g, err := Decode(t.Context(), &d.Definition, Options{Read: func(o llb.Output, file string, limit int64) ([]byte, error) {
		if image, ok := o.Vertex.Op().(llb.Image); !ok || !strings.Contains(image.Ref, "/a:") || file != "def" || limit < int64(len(data)) {
			t.Errorf("%s of %+v is read", file, o.Vertex.Op())
		}
		return data, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if image, ok := g.Output.Vertex.Op().(llb.Image); !ok || !strings.Contains(image.Ref, "/b:") {
		t.Errorf("it is %+v", g.Output.Vertex.Op())
	}
	if of := g.Digests[g.Output.Vertex.Digest()]; len(of) != 1 || of[0].String() != build.Digest {
		t.Errorf("it comes from %v", of)
	}
	var self []byte
	loop := newDefinition(t)
	loop.Def = slices.Clone(d.Def)
	if self, err = proto.Marshal(&loop.Definition); err != nil {
		t.Fatal(err)
	}
	_, err = Decode(t.Context(), &loop.Definition, Options{Read: func(llb.Output, string, int64) ([]byte, error) { return self, nil }})
	if _, ok := errors.AsType[*LimitError](err); !ok {
		t.Errorf("a definition that defines itself: %v", err)
	}
}

// Vertices know which ops they come from, and where those are in a file.
func TestDigests(t *testing.T) {
	d := newDefinition(t)
	a := d.source("https://h/f", "http.perm", "0755")
	b := d.source("https://h/f", "http.perm", "0755", "http.uid", "0")
	merge := d.add(&pb.Op{Inputs: []*pb.Input{a, b}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{}, {Input: 1}}}}})
	d.Metadata[merge.Digest] = &pb.OpMetadata{Description: map[string]string{"llb.customname": "both"}, IgnoreCache: true,
		ProgressGroup: &pb.ProgressGroup{Id: "g"}}
	d.Source = &pb.Source{
		Locations: map[string]*pb.Locations{merge.Digest: {Locations: []*pb.Location{{Ranges: []*pb.Range{{Start: &pb.Position{Line: 3},
			End: &pb.Position{Line: 4}}}}}}},
		Infos: []*pb.SourceInfo{{Filename: "File"}},
	}
	d.ask(merge)
	g, err := Decode(t.Context(), &d.Definition, Options{})
	if err != nil {
		t.Fatal(err)
	}
	v := g.Output.Vertex
	if m := v.Meta(); m.Text != "both" || !m.NoCache || m.Location != (llb.Location{File: "File", StartLine: 3, EndLine: 4}) {
		t.Errorf("the vertex is %+v", m)
	}
	file := v.Inputs()[0].Vertex
	if of := g.Digests[file.Digest()]; len(of) != 2 || of[0].String() != a.Digest || of[1].String() != b.Digest {
		t.Errorf("the file comes from %v", of)
	}
	if op := g.Ops[digest.Digest(a.Digest)]; op == nil || len(op.Vertices) != 2 || op.Name != "https://h/f" {
		t.Errorf("the op is %+v", op)
	}
	if op := g.Ops[digest.Digest(merge.Digest)]; op == nil || op.Group.GetId() != "g" || len(op.Inputs) != 2 || len(op.Locations) != 1 {
		t.Errorf("the op is %+v", op)
	}
}
