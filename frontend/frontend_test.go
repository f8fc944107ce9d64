package frontend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kilnbuild/kiln/frontend/expand"
	"github.com/kilnbuild/kiln/frontend/imageconfig"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

var update = flag.Bool("update", false, "write what Build returns into testdata")

var amd64 = llb.Platform{OS: "linux", Architecture: "amd64"}

// fakeImages is a Resolver of a few images. "multi" has every platform, the others linux/amd64 but "arm", which is for
// linux/arm64 alone.
type fakeImages struct{}

func (fakeImages) ResolveImage(_ context.Context, req ImageRequest) (*BaseImage, error) {
	config := `{"Cmd":["sh"],"Env":["PATH=/usr/bin:/bin"]}`
	layers := `"diff_ids":["sha256:1"]`
	system, arch := "linux", "amd64"
	name, _, _ := strings.Cut(strings.TrimPrefix(req.Ref, "docker.io/library/"), "@")
	switch name {
	case "base:latest", "base:1":
	case "latest", "v1":
		if req.Layout == "" {
			return nil, fmt.Errorf("%s: not found", req.Ref)
		}
	case "configured:latest":
		config = `{"User":"app:web","WorkingDir":"srv","Entrypoint":["/e"],"Cmd":["c"],"Env":["A=1"],"Labels":{"l":"1"},` +
			`"Shell":["/bin/ash","-ec"],"ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}}}`
	case "onbuild:latest":
		config = `{"OnBuild":["ARG WHO=nobody","COPY --from=tools /t /t","RUN echo $WHO"]}`
	case "badonbuild:latest":
		config = `{"OnBuild":["FETCH x"]}`
	case "empty:latest":
		layers = `"diff_ids":[]`
	case "multi:latest":
		arch = req.Platform.Architecture
	case "arm:latest":
		arch = "arm64"
	case "windows:latest":
		system = "windows"
	default:
		return nil, fmt.Errorf("%s: not found", req.Ref)
	}
	data := fmt.Sprintf(`{"os":%q,"architecture":%q,"author":"someone","config":%s,"rootfs":{"type":"layers",%s},
		"history":[{"created":"2020-01-02T03:04:05Z","created_by":"base layer"},{"created_by":"CMD","empty_layer":true}]}`,
		system, arch, config, layers)
	if strings.Contains(layers, "[]") {
		data = fmt.Sprintf(`{"os":"linux","architecture":%q,"config":%s,"rootfs":{"type":"layers",%s}}`, arch, config, layers)
	}
	image := &BaseImage{Digest: "sha256:" + strings.Repeat("ab", 32)}
	return image, json.Unmarshal([]byte(data), &image.Config)
}

// options reads the options of a golden file.
func options(text []byte, ignored string) (Options, error) {
	var in struct {
		Options
		Platform []string
	}
	if len(text) > 0 {
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&in); err != nil {
			return Options{}, err
		}
	}
	o := in.Options
	o.BuildPlatform = amd64
	for _, s := range in.Platform {
		p, err := llb.ParsePlatform(s, amd64)
		if err != nil {
			return Options{}, err
		}
		o.Platforms = append(o.Platforms, p)
	}
	var err error
	o.Ignore, err = ignore.Parse(context.Background(), strings.NewReader(ignored))
	return o, err
}

func files(t testing.TB, name string) (*txtar.Archive, map[string][]byte) {
	archive, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string][]byte{}
	for _, f := range archive.Files {
		byName[f.Name] = f.Data
	}
	return archive, byName
}

func TestGolden(t *testing.T) {
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, byName := files(t, name)
			o, err := options(byName["options.json"], string(byName[".dockerignore"]))
			if err != nil {
				t.Fatal(err)
			}
			res, err := Build(context.Background(), byName["Dockerfile"], o, fakeImages{})
			if err := check(res); err != nil {
				t.Error(err)
			}
			got := dump(res, err)
			if got == string(byName["want"]) {
				return
			}
			if !*update {
				t.Fatalf("got\n%s\nwant\n%s", got, byName["want"])
			}
			for i := range archive.Files {
				if archive.Files[i].Name == "want" {
					archive.Files = append(archive.Files[:i], archive.Files[i+1:]...)
					break
				}
			}
			archive.Files = append(archive.Files, txtar.File{Name: "want", Data: []byte(got)})
			if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		dockerfile string
		line       int
		want       string
	}{
		{"", 0, "the Dockerfile cannot be empty"},
		{"# nothing\n", 1, "file with no instructions"},
		{"ARG A=1\n", 0, "no stages to build"},
		{"\n\nRUN x\n", 3, "no build stage"},
		{"FROM base\nRNU x\n", 2, "did you mean RUN?"},
		{"FROM base\nRUN x \\\n y\n\nENV\n", 5, "ENV requires"},
		{"# escape=\\\n# escape=`\nFROM base\n", 2, "only one escape"},
		{"# syntax=a\n# escape=x\nFROM base\n", 1, "the frontend a is not supported"},
		{"# escape=x\nFROM base\n", 1, "invalid escape token"},
		{"#!/bin/x\n# syntax=example.org/other:2\nFROM base\n", 2, "example.org/other:2 is not supported"},
		{"# check=hop=1\nFROM base\n", 1, "invalid check option"},
		{"FROM base\nRUN " + strings.Repeat("x", 70000) + "\n", 2, "longer than"},
		{"FROM $A\n", 1, "base name ($A) should not be blank"},
		{"FROM base AS Base/x\n", 1, "invalid name for build stage"},
		{"FROM busybx AS one\nFROM one\n", 1, "did you mean busybox? "},
		{"FROM base AS build\nFROM biuld\n", 2, "no stage is named biuld (did you mean build?), and as an image: "},
		{"FROM base:$TAG\n", 1, "TAG has no value: declare it above the first FROM"},
		{"FROM base\nRUN --mount=type=cache true\n", 2, "the mount has no target"},
		{"FROM base\n\nFROM Base\n", 3, "lower case"},
		{"FROM base\n\nFROM Base AS unused\nFROM base\n", 3, "lower case"},
		{"FROM base\nCOPY --from=Base / /\nFROM base\n", 2, "lower case"},
		{"FROM base\nRUN --mount=from=a:b:c,target=/x y\nFROM base\n", 2, "a:b:c"},
		{"FROM --platform=$X base\n", 1, "empty platform value"},
		{"FROM --platform=a/b/c/d base\n", 1, "is not a platform"},
		{"FROM base\nCOPY --from=1 a b\n", 2, "invalid stage index 1"},
		{"FROM base\nCOPY --from=nosuch a b\n", 2, "docker.io/library/nosuch:latest: not found"},
		{"FROM base AS a\nCOPY --from=a a b\n", 2, "circular dependency"},
		{"FROM base AS a\nCOPY --from=b a b\nFROM base AS b\n\nCOPY --from=a a b\n", 5, "circular dependency"},
		{"FROM base AS a\nCOPY --from=b a b\nFROM base AS b\nFROM a\n", 2, "needs to be defined before"},
		{"FROM base\nRUN --mount=from=b,target=/x y\nFROM base AS b\nFROM b\nRUN --mount=from=0,target=/b x\n", 5, "not found"},
		{"FROM base AS b\nRUN --mount=from=c,target=/x y\nFROM base AS c\nFROM b\n", 2, "needs to be defined before"},
		{"FROM base\nARG F=x\nCOPY --from=$F a b\n", 3, "variable expansion is not supported for --from"},
		{"FROM base\nRUN --mount=target=/ x\n", 2, "invalid mount target"},
		{"FROM base\nRUN --mount=target=/proc x\n", 2, `invalid mount target "/proc"`},
		{"FROM base\nRUN --mount=type=tmpfs,target=//x/../sys/. x\n", 2, `invalid mount target "/sys"`},
		{"FROM base\nRUN --mount=type=cache,target=/proc/sys x\n", 2, `invalid mount target "/proc/sys"`},
		{"FROM base\nWORKDIR /proc\nRUN --mount=type=secret,id=s,target=self/attr x\n", 3, `invalid mount target "/proc/self/attr"`},
		{"FROM base\nRUN --mount=type=secret,target= x\n", 2, "secret mount"},
		{"FROM base\nRUN --mount=type=ssh,source=x x\n", 2, "ssh mount has no source"},
		{"FROM base\nRUN --network=host x\n", 2, "--allow network.host"},
		{"FROM base\nRUN --security=insecure x\n", 2, "--allow security.insecure"},
		{"FROM base\nRUN --device=,required x\n", 2, "RUN --device has no name"},
		{"FROM base\nADD --checksum=sha256:12 https://example.org/x /\n", 2, "--checksum=sha256:12: it has to be"},
		{"FROM base\nADD --checksum=sha256:12 https://example.org/x https://example.org/y /\n", 2, "--checksum needs one source"},
		{"FROM base\nADD --keep-git-dir x /\n", 2, "--keep-git-dir needs"},
		{"FROM base\nADD https://example.org/x.git#:../y /\n", 2, "leads out of the repository"},
		{"FROM base\nADD --checksum=abcdef0 git@example.org:x/y.git?commit=abcdef1 /\n", 2, "two commits"},
		{"FROM base\nADD --keep-git-dir=false git://example.org/x?keep-git-dir=1 /\n", 2, "contradicts"},
		{"FROM base\nCOPY git@example.org:x/y.git /\n", 2, "source can't be a git ref"},
		{"FROM base\nCOPY https://example.org/x /\n", 2, "source can't be a URL"},
		{"FROM base\nADD --checksum=sha256:0 x /\n", 2, "--checksum needs"},
		{"FROM base\nCOPY --chmod=8 x /\n", 2, "invalid chmod"},
		{"FROM base\nCOPY --link --chown=app x /\n", 2, "--chown=app"},
		{"FROM base\nCOPY --exclude=[ x /\n", 2, "--exclude"},
		{"FROM base\nEXPOSE 70000\n", 2, "0 to 65535"},
		{"FROM base\nEXPOSE 9-8\n", 2, "before it begins"},
		{"FROM base\nSTOPSIGNAL SIGNOTHING\n", 2, "invalid signal"},
		{"FROM base\nVOLUME $X\n", 2, "empty string"},
		{"FROM base\nRUN []\n", 2, "RUN has no command"},
		{"FROM base\nCOPY --form=base a b\n", 2, "unknown flag: --form (did you mean from?)"},
		{"FROM base\nHEALTHCHECK --retries=99999999999 CMD x\n", 2, "99999999999 is too large"},
		{"FROM base\nHEALTHCHECK --interval=$A CMD x\n", 2, "there are no variables in it"},
		{"FROM base\nRUN --mount= x\n", 2, "a mount is written as --mount=type=cache,target=/path"},
		{"FROM base\nRUN <<EOF\nx\nEOF \n", 2, "unterminated heredoc (a line with nothing but the word after << ends it)"},
		{"FROM base\nRUN echo \uFFFD \xe9\n", 2, `it has the byte 0xe9 (save`},
		{"FROM base\nRUN cat <<A\n\xe9\nA\n", 2, "the command is not text in UTF-8"},
		{"FROM base\nARG A\nENV B=\"${A:?give A}\"\n", 3, "give A"},
		{"ARG SOURCE_DATE_EPOCH=soon\nFROM base\n", 1, "invalid SOURCE_DATE_EPOCH"},
		{"FROM base\n\nFROM badonbuild\n", 3, "unknown instruction: FETCH"},
		{"# check=error=true\nFROM base\nMAINTAINER x\n", 0, "lint violation found for rules: MaintainerDeprecated"},
	} {
		res, err := Build(context.Background(), []byte(tt.dockerfile), Options{BuildPlatform: amd64}, fakeImages{})
		if res == nil {
			t.Fatalf("%q: no result", tt.dockerfile)
		}
		var e *parser.Error
		if !errors.As(err, &e) || e.Line != tt.line || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.80q:\n got %v\nwant line %d: %s", tt.dockerfile, err, tt.line, tt.want)
		}
	}
}

// blockedImages answers no request before all of want have been made.
type blockedImages struct {
	fakeImages
	want     int
	requests chan ImageRequest
	all      chan struct{}
}

func (b *blockedImages) ResolveImage(ctx context.Context, req ImageRequest) (*BaseImage, error) {
	b.requests <- req
	if len(b.requests) == b.want {
		close(b.all)
	}
	select {
	case <-b.all:
	case <-time.After(5 * time.Minute):
		return nil, errors.New("the images are not resolved at the same time")
	}
	return b.fakeImages.ResolveImage(ctx, req)
}

func TestImagesAreResolvedAtOnceAndOnce(t *testing.T) {
	b := &blockedImages{want: 3, requests: make(chan ImageRequest, 10), all: make(chan struct{})}
	const dockerfile = `
FROM base AS a
FROM base:latest AS b
FROM multi AS c
FROM nosuch AS unused
FROM empty
COPY --from=a x x
COPY --from=b x x
COPY --from=c x x
`
	if _, err := Build(context.Background(), []byte(dockerfile), Options{BuildPlatform: amd64}, b); err != nil {
		t.Fatal(err)
	}
	if n := len(b.requests); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

// TestContextNamedContext: a named context may have the name of the build context, as with BuildKit, if it is no directory.
func TestContextNamedContext(t *testing.T) {
	o := Options{BuildPlatform: amd64, NamedContexts: map[string]string{"context": "docker-image://configured"}}
	for text, user := range map[string]string{"FROM context\n": "app:web", "FROM base AS context\nFROM context\n": ""} {
		res, err := Build(t.Context(), []byte(text), o, fakeImages{})
		if err != nil || res.Images[0].Config.User != user {
			t.Errorf("%q: %v, want the user %q", text, err, user)
		}
	}
	o.NamedContexts["context"] = "dir"
	_, err := Build(t.Context(), []byte("FROM base\nCOPY --from=context / /\n"), o, fakeImages{})
	if err == nil || !strings.Contains(err.Error(), "Dockerfile:2: the named context context=dir: give the directory another name") {
		t.Errorf("a directory: error %v", err)
	}
}

// TestBuildArgsAreText: a value goes into digests and shortcuts as JSON, in which all bytes that are no UTF-8 would be the same.
func TestBuildArgsAreText(t *testing.T) {
	for _, args := range []map[string]string{{"A": "\xe9"}, {"\xe9": "a"}} {
		o := Options{BuildPlatform: amd64, BuildArgs: args}
		_, err := Build(t.Context(), []byte("FROM base\nARG A\nWORKDIR /$A\n"), o, fakeImages{})
		if err == nil || !strings.Contains(err.Error(), "not text in UTF-8") {
			t.Errorf("%q: error %v", args, err)
		}
	}
}

func TestCheckSyntax(t *testing.T) {
	for image, ok := range map[string]bool{
		"docker/dockerfile": true, "docker/dockerfile:1-labs": true, "docker.io/docker/dockerfile:1.7": true, "docker/dockerfile-upstream:master": true,
		"index.docker.io/docker/dockerfile:1": true, "mirror.gcr.io/docker/dockerfile:1": true, "registry.corp:5000/proxy/docker/dockerfile": true,
		"registry.corp/docker/dockerfile:1@sha256:" + strings.Repeat("0", 64): true, "dockerfile.v0": true,
		"dockerfile": false, "docker/dockerfile2": false, "mydocker/dockerfile": false, "registry.corp/docker/other": false, "docker/dockerfile/x": false,
	} {
		if err := source.CheckSyntax("", []byte("# syntax="+image+"\nFROM scratch\n"), nil); (err == nil) != ok {
			t.Errorf("%s: %v", image, err)
		}
	}
}

func TestPaths(t *testing.T) {
	for _, tt := range []struct{ src, want, parents string }{
		{"a", "/a", "/a"},
		{"a/", "/a", "/a"},
		{".", "/", "/"},
		{"/", "/", "/"},
		{"../../a", "/a", "/a"},
		{"a/./b", "/a/b", "/a/./b"},
		{"a/../c/./b/./d", "/c/b/d", "/c/./b/d"},
		{"./a/b", "/a/b", "/a/b"},
		{"/./a", "/a", "/./a"},
		{"a/*/./b", "/a/*/b", "/a/*/./b"},
	} {
		if got := copySourcePath(tt.src, false); got != tt.want {
			t.Errorf("copySourcePath(%q, false) = %q, want %q", tt.src, got, tt.want)
		}
		if got := copySourcePath(tt.src, true); got != tt.parents {
			t.Errorf("copySourcePath(%q, true) = %q, want %q", tt.src, got, tt.parents)
		}
	}
	s := &stage{config: imageconfig.New(expand.NewBudget(), false)}
	s.config.SetWorkingDir("/w/x/")
	for dest, want := range map[string]string{
		"": "/w/x/", ".": "/w/x/", "./": "/w/x/", "a": "/w/x/a", "a/": "/w/x/a/", "/": "/", "/a/.": "/a/", "/a/..": "/", "../b": "/w/b",
		"..": "/w", "//a//b": "/a/b",
	} {
		if got, err := s.copyDest(dest); got != want || err != nil {
			t.Errorf("copyDest(%q) = %q, want %q", dest, got, want)
		}
	}
}

func FuzzBuild(f *testing.F) {
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		_, byName := files(f, name)
		f.Add(byName["Dockerfile"])
	}
	f.Fuzz(func(t *testing.T, dockerfile []byte) {
		o := Options{
			BuildPlatform: amd64,
			Platforms:     []llb.Platform{amd64, {OS: "linux", Architecture: "arm64"}},
			BuildArgs:     map[string]string{"A": "x"},
			NamedContexts: map[string]string{"dir": ".", "image": "docker-image://base", "none": "docker-image://scratch"},
			AllStages:     true,
		}
		res, err := Build(context.Background(), dockerfile, o, fakeImages{})
		if err != nil {
			return
		}
		if err := check(res); err != nil {
			t.Errorf("%v\n%s", err, dump(res, nil))
		}
	})
}
