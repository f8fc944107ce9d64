package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// image is one of those that stand in for images of docker.io. It is made of images/DOCKERFILE.Dockerfile.
type image struct {
	name       string
	dockerfile string
	args       []string // further flags of kiln build
	// change makes another manifest of that which kiln has pushed; nil for none.
	change func(manifest map[string]any)
}

var images = []image{
	{name: "library/busybox:latest", dockerfile: "busybox"},
	{name: "library/busybox:stable-musl", dockerfile: "busybox"},
	{name: "library/busybox_amd64:latest", dockerfile: "busybox", args: []string{"--platform=linux/amd64"}},
	{name: "library/alpine:latest", dockerfile: "alpine"},
	// Tests compare digests of this image with those of docker.io's, and cannot pass; without the image others do not even run.
	{name: "amd64/debian:bullseye-20230109-slim", dockerfile: "busybox", args: []string{"--platform=linux/amd64"}},
	{name: "tonistiigi/hellofs:latest", dockerfile: "hellofs"},
	{name: "tonistiigi/test:nolayers", dockerfile: "nolayers"},
	{name: "cpuguy83/buildkit-foreign:latest", dockerfile: "foreign", change: foreign},
}

// foreign makes the first of the layers one that is not distributed.
func foreign(manifest map[string]any) {
	layer := manifest["layers"].([]any)[0].(map[string]any)
	layer["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	layer["urls"] = []string{"http://127.0.0.1:1/layer"}
}

// created is the time at which the images say they were made: before any time that tests use.
const created = "SOURCE_DATE_EPOCH=1600000000"

// mirror returns the data directory of a registry with all images.
func (c cache) mirror(ctx context.Context) (string, error) {
	hash := sha256.New()
	recipes, err := filepath.Glob(filepath.Join(source(), "images/*"))
	if err != nil {
		return "", err
	}
	for _, recipe := range recipes {
		data, err := os.ReadFile(recipe)
		if err != nil {
			return "", err
		}
		hash.Write(data)
	}
	path := filepath.Join(c.made, fmt.Sprintf("mirror-%x", hash.Sum(nil)[:6]))
	return path, c.once("mirror", path, func(tmp string) error {
		kiln, err := c.kiln(ctx, "kiln")
		if err != nil {
			return err
		}
		work, err := os.MkdirTemp(c.top, "mirror-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(work)
		if err := os.Mkdir(tmp, 0o755); err != nil {
			return err
		}
		if err := command(ctx, work, nil, filepath.Join(source(), "images/context"), work+"/context"); err != nil {
			return err
		}
		host, stop, err := startRegistry(ctx, filepath.Join(tmp, "data"), work)
		if err != nil {
			return err
		}
		defer stop()
		for _, i := range images {
			if err := i.push(ctx, kiln, host, work); err != nil {
				return fmt.Errorf("image %s: %w", i.name, err)
			}
		}
		return nil
	})
}

// push builds an image and puts it into the registry.
func (i image) push(ctx context.Context, kiln, host, work string) error {
	args := []string{"build", "--quiet", "--push", "--provenance=false", "--build-arg", created, "--output=type=registry,oci-mediatypes=false",
		"-t", host + "/" + i.name, "-f", filepath.Join(source(), "images", i.dockerfile+".Dockerfile")}
	if err := command(ctx, work, kilnEnv(work), kiln, append(append(args, i.args...), work+"/context")...); err != nil {
		return err
	}
	if i.change == nil {
		return nil
	}
	repository, tag, _ := strings.Cut(i.name, ":")
	url := fmt.Sprintf("http://%s/v2/%s/manifests/%s", host, repository, tag)
	kind := "application/vnd.docker.distribution.manifest.v2+json"
	data, err := exchange(ctx, "GET", url, kind, nil)
	if err != nil {
		return err
	}
	content := map[string]any{}
	if err := json.Unmarshal(data, &content); err != nil {
		return err
	}
	i.change(content)
	if data, err = json.Marshal(content); err != nil {
		return err
	}
	_, err = exchange(ctx, "PUT", url, kind, data)
	return err
}

// listening is what docker-registry prints when it can be used.
var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// startRegistry starts Debian's docker-registry with its data in a directory. Its configuration is written into work.
func startRegistry(ctx context.Context, data, work string) (host string, stop func(), err error) {
	config := filepath.Join(work, "registry.yaml")
	text := fmt.Sprintf("version: 0.1\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: '127.0.0.1:0'}\n"+
		"validation: {manifests: {urls: {allow: ['^http://127']}}}\n", data)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, "docker-registry", "serve", config)
	out, err := cmd.StderrPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	lines := bufio.NewScanner(out)
	var said []string
	for lines.Scan() {
		said = append(said, lines.Text())
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			go io.Copy(io.Discard, out)
			return m[1], stop, nil
		}
	}
	stop()
	return "", nil, errors.New("docker-registry does not listen: " + strings.Join(said, "\n"))
}

// exchange makes one request for a manifest of a media type and returns the answer.
func exchange(ctx context.Context, method, url, kind string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", kind)
	req.Header.Set("Content-Type", kind)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s\n%s", method, url, res.Status, data)
	}
	return data, err
}
