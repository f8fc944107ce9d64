package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// source makes bytes that compress about as programs and their data do: words of a fixed vocabulary, and between them
// stretches that do not compress at all. The same seed gives the same bytes.
type source struct {
	rand  *rand.Rand
	bytes *rand.ChaCha8
	zipf  *rand.Zipf
	words [][]byte
	rest  []byte
	buf   []byte
}

func newSource(seed uint64) *source {
	s := &source{rand: rand.New(rand.NewPCG(seed, 1)), bytes: rand.NewChaCha8([32]byte{byte(seed)})}
	s.zipf = rand.NewZipf(s.rand, 1.1, 4, 4095)
	for range 4096 {
		word := make([]byte, 2+s.rand.IntN(12))
		for i := range word {
			word[i] = 'a' + byte(s.rand.IntN(26))
		}
		s.words = append(s.words, append(word, ' '))
	}
	return s
}

func (s *source) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		s.buf = s.buf[:0]
		if s.rand.IntN(5) == 0 {
			s.buf = append(s.buf, make([]byte, 2048)...)
			s.bytes.Read(s.buf)
		} else {
			for len(s.buf) < 8192 {
				s.buf = append(s.buf, s.words[s.zipf.Uint64()]...)
			}
		}
		s.rest = s.buf
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// write writes a file of size bytes.
func (s *source) write(name string, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<16)
	_, err = io.CopyN(w, s, size)
	return errors.Join(err, w.Flush(), f.Close())
}

// tree writes a directory of files of 1 to 8 KiB, a hundred to a directory.
func tree(dir string, files int) error {
	s := newSource(uint64(files))
	for i := range files {
		if i%100 == 0 {
			if err := os.MkdirAll(filepath.Dir(treeFile(dir, i)), 0o755); err != nil {
				return err
			}
		}
		if err := s.write(treeFile(dir, i), 1024+s.rand.Int64N(7*1024)); err != nil {
			return err
		}
	}
	return nil
}

func treeFile(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("pkg%03d/sub%03d/file%03d.txt", i/10000, i/100%100, i%100))
}

// fixed is the time of all files of base images.
var fixed = time.Unix(1700000000, 0)

// busybox adds the machine's busybox and a name for each of its programs.
func busybox(t *tar.Writer) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, dir := range []string{"bin/", "etc/", "root/", "tmp/", "usr/", "var/"} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: fixed}); err != nil {
			return err
		}
	}
	if err := t.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: "bin/busybox", Size: int64(len(data)), Mode: 0o755, ModTime: fixed,
	}); err != nil {
		return err
	}
	if _, err := t.Write(data); err != nil {
		return err
	}
	list, err := exec.Command(path, "--list").Output()
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		if name == "busybox" {
			continue
		}
		if err := t.WriteHeader(&tar.Header{
			Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777, ModTime: fixed,
		}); err != nil {
			return err
		}
	}
	return nil
}

// distribution adds as many files and bytes as a small Debian has: 8,700 and 170 MB, most of the files small.
func distribution(t *tar.Writer) error {
	if err := busybox(t); err != nil {
		return err
	}
	s := newSource(170)
	for i := range 8700 {
		if i%60 == 0 {
			if err := t.WriteHeader(&tar.Header{
				Typeflag: tar.TypeDir, Name: fmt.Sprintf("usr/dir%03d/", i/60), Mode: 0o755, ModTime: fixed,
			}); err != nil {
				return err
			}
		}
		size := int64(s.rand.ExpFloat64() * 6000)
		if i%40 == 0 {
			size += int64(s.rand.ExpFloat64() * 540000) // libraries
		}
		if err := t.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/dir%03d/file%02d", i/60, i%60), Size: size, Mode: 0o644, ModTime: fixed,
		}); err != nil {
			return err
		}
		if _, err := io.CopyN(t, s, size); err != nil {
			return err
		}
	}
	return nil
}

// debianTar returns the tar of a minimal Debian from the machine's package sources. It is made once and kept.
func debianTar() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "kiln-bench", "debian-bookworm.tar")
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return "", err
	}
	mmdebstrap := exec.Command("mmdebstrap", "--variant=minbase", "--quiet", "--format=tar", "bookworm", name+".new")
	if out, err := mmdebstrap.CombinedOutput(); err != nil {
		os.Remove(name + ".new")
		return "", fmt.Errorf("mmdebstrap: %w\n%s", err, out)
	}
	return name, os.Rename(name+".new", name)
}

// debian adds the files of debianTar.
func debian(t *tar.Writer) error {
	name, err := debianTar()
	if err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			continue // /dev is the builder's
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(t, r); err != nil {
			return err
		}
	}
}

// base returns the name of a base image of the registry, and the file of its compressed layer; it is made when it is first asked for.
func (e *env) base(name string) (ref, blob string, err error) {
	ref, blob = e.reg.host+"/"+name+":latest", filepath.Join(e.reg.tmp, name+".tar.gz")
	if _, err := os.Stat(blob); err == nil {
		return ref, blob, nil
	}
	fill := busybox
	if name == "debian" {
		fill = distribution
		if e.debian {
			fill = debian
		}
	}
	return e.reg.image(name, fill)
}

// context returns a directory of the inputs, which make fills when it is first asked for.
func (e *env) context(name string, make func(dir string) error) (string, error) {
	dir := filepath.Join(e.tmp, "input", name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, make(dir)
}

// dockerfile writes a Dockerfile, beside its context so that it is no part of it, and returns its name.
func (e *env) dockerfile(name, text string) (string, error) {
	path := filepath.Join(e.tmp, "dockerfiles", name)
	return path, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644))
}
