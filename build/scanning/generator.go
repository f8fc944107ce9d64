package scanning

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
)

// generator is an image that scans others (BuildKit, docs/attestations/sbom-protocol.md).
type generator struct {
	op    llb.Image
	image *frontend.BaseImage
}

// The protocol: where a generator finds what it scans, and where it puts its statements.
const (
	sourceDir  = "/run/src/core/" + core
	extrasDir  = "/run/src/extras/"
	outputDir  = "/run/out/"
	variables  = "BUILDKIT_SCAN_"
	maxRun     = 30 * time.Minute
	maxOutput  = 64 << 20 // bytes of a statement, and of all of them
	maxOutputs = 100      // statements
)

// Check returns an error if the options cannot be carried out, whatever is built.
func Check(o *attestation.SBOM) error {
	if o.Generator == "" {
		return nil
	}
	if _, err := imagename.Parse(o.Generator); err != nil {
		return &input.Error{Err: fmt.Errorf("generator=%s: %w", o.Generator, err)}
	}
	for key, value := range o.Attrs {
		if strings.ContainsAny(key, "=\x00") || strings.ContainsRune(value, 0) {
			return &input.Error{Err: fmt.Errorf("the parameter %q of the generator cannot be a variable of its environment", key)}
		}
	}
	return nil
}

// Resolve finds the image of the generator, so that one that does not exist is an error before any step runs. s may be nil.
func (s *Scanning) Resolve(ctx context.Context) error {
	if s == nil || s.Options.Generator == "" || s.generator != nil {
		return nil
	}
	name, err := imagename.Parse(s.Options.Generator)
	if err != nil {
		return err
	}
	admitted, err := s.Admit(llb.Image{Ref: name.String()})
	if err != nil {
		return fmt.Errorf("the SBOM generator %s: %w", s.Options.Generator, err)
	}
	op, ok := admitted.(llb.Image)
	if !ok {
		return fmt.Errorf("the SBOM generator %s: the source policy puts something in its place that is no image", s.Options.Generator)
	}
	image, err := s.Resolver.ResolveImage(ctx, frontend.ImageRequest{
		Ref: op.Ref, Layout: op.Layout, Platform: llb.Host(), Place: llb.Place{Group: "internal"}, Text: "load metadata for " + op.Ref,
	})
	if err != nil {
		return fmt.Errorf("find the SBOM generator %s: %w", s.Options.Generator, err)
	}
	if len(image.Config.Config.Entrypoint)+len(image.Config.Config.Cmd) == 0 {
		return &input.Error{Err: fmt.Errorf("generator=%s: the image names no program, neither ENTRYPOINT nor CMD", s.Options.Generator)}
	}
	op.Digest = image.Digest
	s.generator = &generator{op, image}
	return nil
}

// step returns the step that scans an image, as the output that has the statements.
func (s *Scanning) step(img *frontend.Image) llb.Output {
	g, graph := s.generator, &llb.Graph{}
	platform := llb.Host().String()
	place := llb.Place{Group: "internal"}
	scratch := graph.Add(llb.Scratch{}, llb.Meta{Place: place}).Output(0)
	image := graph.Add(g.op, llb.Meta{Place: place, Text: "FROM " + g.op.Ref, Platform: platform}).Output(0)
	cfg := g.image.Config.Config
	op := llb.Exec{
		Args: slices.Concat(cfg.Entrypoint, cfg.Cmd), Env: slices.Clone(cfg.Env), Cwd: cfg.WorkingDir, User: cfg.User,
		Network: llb.NetworkDefault,
		Mounts: []llb.Mount{
			{Type: llb.MountTmpfs, Target: "/tmp"},
			{Type: llb.MountBind, Target: sourceDir, Input: 1, Source: "/", ReadOnly: true},
			{Type: llb.MountBind, Target: path.Clean(outputDir), Input: 2, Source: "/", Output: 1},
		},
	}
	if op.Cwd == "" {
		op.Cwd = "/"
	}
	inputs := []llb.Output{image, img.Root, scratch}
	op.Env = setenv(op.Env, variables+"DESTINATION", outputDir)
	op.Env = setenv(op.Env, variables+"SOURCE", sourceDir)
	if len(img.Scan) > 0 {
		op.Env = setenv(op.Env, variables+"SOURCE_EXTRAS", path.Clean(extrasDir))
	}
	for _, key := range slices.Sorted(maps.Keys(s.Options.Attrs)) {
		op.Env = setenv(op.Env, variables+key, s.Options.Attrs[key])
	}
	for _, extra := range img.Scan {
		op.Mounts = append(op.Mounts, llb.Mount{
			Type: llb.MountBind, Target: extrasDir + core + "-" + extra.Name, Input: len(inputs), Source: "/", ReadOnly: true,
		})
		inputs = append(inputs, extra.Output)
	}
	return graph.Add(op, llb.Meta{
		Place: place, Text: fmt.Sprintf("[%s] generating sbom using %s", img.Platform, g.op.Ref), Platform: platform,
	}, inputs...).Output(1)
}

// setenv sets a variable in an environment.
func setenv(env []string, name, value string) []string {
	env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	return append(env, name+"="+value)
}

// generate has the generator scan an image.
func (s *Scanning) generate(ctx context.Context, img *frontend.Image) ([]attestation.Attestation, error) {
	name := s.Options.Generator
	limited, cancel := context.WithTimeoutCause(ctx, maxRun, fmt.Errorf("it ran longer than %v", maxRun))
	defer cancel()
	ref, err := s.Steps.Solve(limited, s.step(img))
	if err != nil {
		if ctx.Err() == nil && limited.Err() != nil {
			err = context.Cause(limited)
		}
		return nil, fmt.Errorf("the SBOM generator %s: %w", name, err)
	}
	tree, err := s.Steps.Files(ctx, ref)
	if err != nil {
		return nil, err
	}
	all, err := statements(tree)
	if err != nil {
		return nil, fmt.Errorf("the SBOM generator %s: %w", name, err)
	}
	for i := range all {
		all[i].InlineOnly = s.Options.InlineOnly
	}
	return all, nil
}

// statements reads the statements that a generator has left, that about the image itself first.
func statements(tree layer.Tree) ([]attestation.Attestation, error) {
	entries, err := tree.List("")
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("it has written nothing into %s", outputDir)
	}
	if len(entries) > maxOutputs {
		return nil, fmt.Errorf("it has written %d files into %s, more than the %d that are allowed", len(entries), outputDir, maxOutputs)
	}
	var all []attestation.Attestation
	left := int64(maxOutput)
	for i := range entries {
		e := &entries[i]
		shown := strconv.Quote(e.Path)
		if e.Type != layer.File {
			return nil, fmt.Errorf("it has written %s into %s, which is not a file", shown, outputDir)
		}
		if left -= e.Size; left < 0 {
			return nil, fmt.Errorf("it has written more than %d MiB into %s: %s has %s",
				maxOutput>>20, outputDir, shown, termtext.Size(e.Size))
		}
		a, err := statement(tree, e)
		if err != nil {
			return nil, fmt.Errorf("%s, which it has written: %w", shown, err)
		}
		all = append(all, *a)
	}
	// That of the image is called sbom.EXTENSION.
	slices.SortStableFunc(all, func(a, b attestation.Attestation) int { return order(a.File) - order(b.File) })
	return all, nil
}

func order(file string) int {
	if name, _, _ := strings.Cut(file, "."); name == core {
		return 0
	}
	return 1
}

// statement reads a statement.
func statement(tree layer.Tree, e *layer.Entry) (*attestation.Attestation, error) {
	r, err := tree.Open(e)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var s attestation.Statement
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("it is not JSON: %w", err)
	}
	switch {
	case s.Type != attestation.StatementType && s.Type != attestation.StatementType01:
		return nil, errors.New("it is not a statement of in-toto")
	case s.PredicateType != attestation.SPDX:
		return nil, fmt.Errorf("it is a statement of the type %q, and not of %s", s.PredicateType, attestation.SPDX)
	case len(s.Predicate) == 0 || s.Predicate[0] != '{':
		return nil, errors.New("it has no predicate")
	}
	return &attestation.Attestation{
		PredicateType: s.PredicateType, Subjects: attestation.Subjects(s.Subject), Predicate: s.Predicate, File: e.Path,
	}, nil
}
