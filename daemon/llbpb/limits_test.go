package llbpb

import (
	"errors"
	"fmt"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/llb"
)

// write adds an op to a definition, and returns its digest.
func write(t *testing.T, def *pb.Definition, op *pb.Op) string {
	t.Helper()
	data, err := op.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	def.Def = append(def.Def, data)
	return digest.FromBytes(data).String()
}

// ask adds the last op, which asks for what another makes.
func ask(t *testing.T, def *pb.Definition, dgst string) {
	t.Helper()
	write(t, def, &pb.Op{Inputs: []*pb.Input{{Digest: dgst}}})
}

// files adds an op that makes n files, each in a root of its own, which are its outputs.
func files(t *testing.T, def *pb.Definition, n int) string {
	t.Helper()
	f := &pb.FileOp{}
	for i := range n {
		f.Actions = append(f.Actions, &pb.FileAction{
			Input: -1, SecondaryInput: -1, Output: int64(i),
			Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: fmt.Sprintf("/f%d", i), Mode: 0o644, Timestamp: -1}},
		})
	}
	return write(t, def, &pb.Op{Op: &pb.Op_File{File: f}})
}

// What ops define inside a definition counts for the limits of the whole.
func TestNestedLimit(t *testing.T) {
	const builds, ops = 100, 1000
	var inner, outer pb.Definition
	last := files(t, &inner, 1)
	for i := range ops {
		last = write(t, &inner, &pb.Op{
			Platform: &pb.Platform{OSVersion: fmt.Sprint(i)}, Inputs: []*pb.Input{{Digest: last}},
			Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "p", Outputs: []int64{0}}},
		})
	}
	ask(t, &inner, last)
	data, err := inner.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	file := files(t, &outer, 1)
	all, merge := &pb.Op{}, &pb.MergeOp{}
	for i := range builds {
		all.Inputs = append(all.Inputs, &pb.Input{Digest: write(t, &outer, &pb.Op{
			Platform: &pb.Platform{OSVersion: fmt.Sprint(i)}, Inputs: []*pb.Input{{Digest: file}},
			Op: &pb.Op_Build{Build: &pb.BuildOp{
				Builder: int64(pb.LLBBuilder), Inputs: map[string]*pb.BuildInput{pb.LLBDefinitionInput: {Input: 0}},
			}},
		})})
		merge.Inputs = append(merge.Inputs, &pb.MergeInput{Input: int64(i)})
	}
	all.Op = &pb.Op_Merge{Merge: merge}
	ask(t, &outer, write(t, &outer, all))
	_, err = Decode(t.Context(), &outer, Options{Read: func(llb.Output, string, int64) ([]byte, error) { return data, nil }})
	if limit, ok := errors.AsType[*LimitError](err); !ok || limit.What != "ops" {
		t.Errorf("%d builds of %d ops each: %v", builds, ops, err)
	}
}

// The time that a definition takes is in proportion to its size: with the square of it none of these would end.
func TestLargeOps(t *testing.T) {
	const n = 50_000
	decode := func(def *pb.Definition) {
		t.Helper()
		if _, err := Decode(t.Context(), def, Options{}); err != nil {
			t.Error(err)
		}
	}
	t.Run("outputs of an exec", func(t *testing.T) {
		var def pb.Definition
		e := &pb.ExecOp{Meta: &pb.Meta{Args: []string{"a"}, Cwd: "/"}, Mounts: []*pb.Mount{{Dest: "/", Input: 0, Output: 0}}}
		for i := range n {
			e.Mounts = append(e.Mounts, &pb.Mount{Dest: fmt.Sprintf("/m%d", i), Input: -1, Output: int64(i + 1)})
		}
		ask(t, &def, write(t, &def, &pb.Op{Inputs: []*pb.Input{{Digest: files(t, &def, 1)}}, Op: &pb.Op_Exec{Exec: e}}))
		decode(&def)
	})
	t.Run("locations of a file op", func(t *testing.T) {
		var def pb.Definition
		dgst := files(t, &def, n)
		ask(t, &def, dgst)
		where := &pb.Locations{}
		for range 20 * n {
			where.Locations = append(where.Locations, &pb.Location{})
		}
		def.Source = &pb.Source{Infos: []*pb.SourceInfo{{}}, Locations: map[string]*pb.Locations{dgst: where}}
		decode(&def)
	})
	t.Run("inputs of a merge", func(t *testing.T) {
		var def pb.Definition
		dgst := files(t, &def, n)
		all, merge := &pb.Op{}, &pb.MergeOp{}
		for i := range n {
			all.Inputs = append(all.Inputs, &pb.Input{Digest: dgst, Index: int64(i)})
			merge.Inputs = append(merge.Inputs, &pb.MergeInput{Input: int64(i)})
		}
		all.Op = &pb.Op_Merge{Merge: merge}
		ask(t, &def, write(t, &def, all))
		g, err := Decode(t.Context(), &def, Options{})
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for range llb.Vertices([]llb.Output{g.Output}) {
			count++
		}
		if count != n+2 { // with the merge, and the empty root
			t.Errorf("%d vertices", count)
		}
	})
}
