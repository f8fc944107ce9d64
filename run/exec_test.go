package run

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/llb"
)

func imageConfig(c ocispec.ImageConfig) *dockerspec.DockerOCIImageConfig {
	return &dockerspec.DockerOCIImageConfig{ImageConfig: c}
}

// What the user says takes the place of what the image says.
func TestExec(t *testing.T) {
	img := ocispec.ImageConfig{Entrypoint: []string{"/entry", "a"}, Cmd: []string{"b"}, Env: []string{"A=1", "PATH=/bin", "A=2"}, WorkingDir: "/w", User: "u"}
	for _, tc := range []struct {
		name    string
		program Program
		args    string
	}{
		{"image", Program{}, "/entry a b"},
		{"args", Program{Args: []string{"c", ""}}, "/entry a c "},
		{"entrypoint", Program{Entrypoint: []string{"e"}}, "e"},
		{"entrypoint and args", Program{Entrypoint: []string{"e"}, Args: []string{"x"}}, "e x"},
		{"no entrypoint", Program{Entrypoint: []string{}, Args: []string{"x"}}, "x"},
	} {
		o := Options{Image: "i", Program: tc.program}
		op, err := o.exec(imageConfig(img))
		if got := strings.Join(op.Args, " "); got != tc.args || err != nil {
			t.Errorf("%s: %q, %v", tc.name, got, err)
		}
	}
	o := Options{Image: "i", Terminal: true, Program: Program{Env: []string{"B=", "A=3", "TERM=dumb"}, Dir: "/d", User: "0"}}
	op, err := o.exec(imageConfig(img))
	want := []string{"PATH=/bin", "HOSTNAME=kiln", "TERM=dumb", "A=3", "B="}
	if !slices.Equal(op.Env, want) || op.Cwd != "/d" || op.User != "0" || err != nil {
		t.Errorf("%q in %q as %q, %v", op.Env, op.Cwd, op.User, err)
	}
}

// A config that nobody checked gives an error that says what is wrong, and is short.
func TestHostileConfig(t *testing.T) {
	huge := strings.Repeat("x\x1b[31m", 1<<18)
	for name, c := range map[string]ocispec.ImageConfig{
		"no program":         {},
		"empty program":      {Cmd: []string{""}},
		"relative directory": {Cmd: []string{"a"}, WorkingDir: huge},
		"deep directory":     {Cmd: []string{"a"}, WorkingDir: strings.Repeat("/x", 3000)},
		"volume at /":        {Cmd: []string{"a"}, Volumes: map[string]struct{}{"/../": {}}},
		"relative volume":    {Cmd: []string{"a"}, Volumes: map[string]struct{}{huge: {}}},
		"empty volume":       {Cmd: []string{"a"}, Volumes: map[string]struct{}{"": {}}},
		"port":               {Cmd: []string{"a"}, ExposedPorts: map[string]struct{}{huge: {}}},
		"port 0":             {Cmd: []string{"a"}, ExposedPorts: map[string]struct{}{"0/tcp": {}}},
		"protocol":           {Cmd: []string{"a"}, ExposedPorts: map[string]struct{}{"1/sctp": {}}},
	} {
		o := Options{Image: "i", PublishAll: true}
		_, err := o.exec(imageConfig(c))
		if err == nil {
			_, err = o.volumes(imageConfig(c))
		}
		if err == nil {
			_, err = o.ports(imageConfig(c))
		}
		if err == nil || len(err.Error()) > 500 {
			t.Errorf("%s: %.600v", name, err)
		}
	}
	many := ocispec.ImageConfig{Volumes: map[string]struct{}{}}
	for i := range maxVolumes + 1 {
		many.Volumes["/"+strings.Repeat("a", i+1)] = struct{}{}
	}
	if _, err := (&Options{Image: "i"}).volumes(imageConfig(many)); err == nil {
		t.Error("too many volumes")
	}
}

// The user's volumes come before those of the image, and one below another after it.
func TestVolumes(t *testing.T) {
	o := Options{Image: "i", Volumes: []Volume{
		{Kind: Bind, Source: "/s", Target: "/b/c/../d"}, {Kind: Tmpfs, Target: "/t/"}, {Kind: Bind, Source: "/s", Target: "/a"},
	}}
	all, err := o.volumes(imageConfig(ocispec.ImageConfig{Volumes: map[string]struct{}{"/b/d/": {}, "/t": {}, "/b": {}}}))
	var got []string
	for _, v := range all {
		got = append(got, v.Target+v.Source)
	}
	if want := []string{"/a/s", "/b", "/b/d/s"}; !slices.Equal(got, want) || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	o.Volumes = append(o.Volumes, Volume{Target: "/a/."})
	if _, err := o.volumes(imageConfig(ocispec.ImageConfig{})); !errors.As(err, new(*input.Error)) {
		t.Errorf("two at one target: %v", err)
	}
}

func TestCheck(t *testing.T) {
	for _, o := range []Options{
		{Volumes: []Volume{{Target: "a"}}}, {Volumes: []Volume{{Target: "/a/.."}}},
		{Network: llb.NetworkNone, Ports: []network.Port{{Protocol: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:1"), Inside: 1}}},
		{Network: llb.NetworkHost, PublishAll: true},
	} {
		if err := o.check(); !errors.As(err, new(*input.Error)) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
