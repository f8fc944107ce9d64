package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// registry is Debian's docker-registry on a free port of the loopback interface.
type registry struct {
	host string
	dir  string
	cmd  *exec.Cmd
	keep map[string]bool // directories of blobs that are not swept
	tmp  string
}

func startRegistry(ctx context.Context, tmp string) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{host: l.Addr().String(), dir: filepath.Join(tmp, "registry"), tmp: tmp}
	l.Close()
	config := filepath.Join(tmp, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"+
		"storage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", r.dir, r.host)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	r.cmd = exec.Command("docker-registry", "serve", config)
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start Debian's docker-registry: %w", err)
	}
	for range 100 {
		res, err := http.Get("http://" + r.host + "/v2/")
		if err == nil {
			res.Body.Close()
			return r, nil
		}
		if ctx.Err() != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.stop()
	return nil, fmt.Errorf("docker-registry does not answer on %s", r.host)
}

func (r *registry) stop() {
	r.cmd.Process.Kill()
	r.cmd.Wait()
}

func (r *registry) blobs() []string {
	dirs, _ := filepath.Glob(filepath.Join(r.dir, "docker/registry/v2/blobs/sha256/*/*"))
	return dirs
}

// sweep removes what builders pushed, so that each push starts with the same registry: the base images and nothing else.
func (r *registry) sweep() {
	for _, dir := range r.blobs() {
		if !r.keep[dir] {
			os.RemoveAll(dir)
		}
	}
	os.RemoveAll(filepath.Join(r.dir, "docker/registry/v2/repositories/out"))
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// image pushes an image of one layer, whose tar fill writes, and returns its name and the file of its compressed layer.
func (r *registry) image(name string, fill func(*tar.Writer) error) (ref, blob string, err error) {
	blob = filepath.Join(r.tmp, name+".tar.gz")
	f, err := os.Create(blob)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	z := gzip.NewWriter(f)
	plain := sha256.New()
	t := tar.NewWriter(io.MultiWriter(z, plain))
	if err := fill(t); err != nil {
		return "", "", err
	}
	if err := t.Close(); err != nil {
		return "", "", err
	}
	if err := z.Close(); err != nil {
		return "", "", err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", plain.Sum(nil))}},
	})
	if err != nil {
		return "", "", err
	}
	layer, err := r.blob(name, f)
	if err != nil {
		return "", "", err
	}
	configBlob, err := r.blob(name, bytes.NewReader(config))
	if err != nil {
		return "", "", err
	}
	const oci = "application/vnd.oci.image."
	layer.MediaType, configBlob.MediaType = oci+"layer.v1.tar+gzip", oci+"config.v1+json"
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": configBlob, "layers": []descriptor{layer},
	})
	if err != nil {
		return "", "", err
	}
	url := "http://" + r.host + "/v2/" + name + "/manifests/latest"
	if _, err := r.send("PUT", url, bytes.NewReader(manifest), oci+"manifest.v1+json"); err != nil {
		return "", "", err
	}
	r.keep = map[string]bool{}
	for _, dir := range r.blobs() {
		r.keep[dir] = true
	}
	return r.host + "/" + name + ":latest", blob, nil
}

// blob pushes one blob.
func (r *registry) blob(name string, f io.ReadSeeker) (d descriptor, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return d, err
	}
	h := sha256.New()
	if d.Size, err = io.Copy(h, f); err != nil {
		return d, err
	}
	d.Digest = fmt.Sprintf("sha256:%x", h.Sum(nil))
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return d, err
	}
	to, err := r.send("POST", "http://"+r.host+"/v2/"+name+"/blobs/uploads/", nil, "")
	if err != nil {
		return d, err
	}
	sep := "?"
	if strings.Contains(to, "?") {
		sep = "&"
	}
	_, err = r.send("PUT", to+sep+"digest="+d.Digest, io.NopCloser(f), "application/octet-stream")
	return d, err
}

// send makes a request and returns where the answer points to.
func (r *registry) send(method, url string, body io.Reader, mediaType string) (location string, err error) {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return "", err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 500))
		return "", fmt.Errorf("%s %s: %s: %s", method, url, res.Status, text)
	}
	return res.Header.Get("Location"), nil
}
