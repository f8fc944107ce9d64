package torture

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// forms are the ways in which a secret may have been written down.
func forms(secret []byte) [][]byte {
	out := [][]byte{secret, []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret)))}
	for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift := range 3 {
			text := e.EncodeToString(append(make([]byte, shift), secret...))
			out = append(out, []byte(text[4:len(text)-4])) // its ends depend on what is beside it
		}
	}
	return out
}

// TestSecrets gives a build secrets in every way that there is, and looks for them in all that it leaves: when it ends well,
// when a step fails, when kiln is killed, and when the disk is full.
func TestSecrets(t *testing.T) {
	secrets := map[string][]byte{}
	secret := func(what string) string {
		b := make([]byte, 16)
		rand.Read(b)
		text := "canary" + hex.EncodeToString(b)
		secrets[what] = []byte(text)
		return text
	}

	// A registry, and a server of files, that want passwords.
	registryPassword, filePassword, linkPassword := secret("the registry's password"), secret("the password in a header"), secret("the password in an address")
	index, err := layout.ImageIndexFromPath(base)
	if err != nil {
		t.Fatal(err)
	}
	images, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	image := images.Manifests[0]
	behind := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		if what == "v1" {
			what = image.Digest.String()
		}
		if what == image.Digest.String() {
			w.Header().Set("Content-Type", string(image.MediaType))
		}
		http.ServeFile(w, r, filepath.Join(base, "blobs", "sha256", strings.TrimPrefix(what, "sha256:")))
	})
	asks := func(password string, h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, got, _ := r.BasicAuth(); got != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
	closed := httptest.NewServer(asks(registryPassword, behind))
	defer closed.Close()
	file := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "file") })
	files := httptest.NewServer(asks(linkPassword, file))
	defer files.Close()
	others := httptest.NewServer(asks(filePassword, file))
	defer others.Close()
	host := strings.TrimPrefix(closed.URL, "http://")

	given := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(given, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("config.json", fmt.Sprintf(`{"auths":{%q:{"username":"user","password":%q}}}`, host, registryPassword))
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	secrets["the ssh key"] = key.Seed()
	pemFile := write("key", string(pem.EncodeToMemory(block)))
	secretFile := write("secret", secret("the secret in a file"))
	header := write("header", "Basic "+base64.StdEncoding.EncodeToString([]byte("user:"+filePassword)))
	env := secret("the secret in the environment")
	proxy := secret("the password of a proxy")

	for _, ending := range []struct{ name, script string }{
		{"ok", "true"},
		{"fail", "exit 3"},
		{"killed", "echo ready; sleep 10000"},
		{"full", "dd if=/dev/zero of=/fill bs=1M count=100"},
	} {
		t.Run(ending.name, func(t *testing.T) {
			mnt := t.TempDir()
			if ending.name == "full" {
				disk := filepath.Join(t.TempDir(), "disk")
				sh(t, "truncate", "-s", "20M", disk)
				sh(t, "mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", disk)
				sh(t, "mount", "-o", "loop", disk, mnt)
				t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
			}
			tmp := t.TempDir()
			p := newProject(t, filepath.Join(mnt, "root"), map[string]string{"Dockerfile": fmt.Sprintf(`FROM %s/base:v1
ADD %s/file /linked
ADD %s/file /header
RUN --mount=type=secret,id=file --mount=type=secret,id=env,env=WORD --mount=type=secret,id=env --mount=type=ssh \
    grep -q canary /run/secrets/file && grep -q canary /run/secrets/env && test -n "$WORD" -a -S "$SSH_AUTH_SOCK" && case $HTTPS_PROXY in *canary*) ;; *) exit 9;; esac; %s
`, host, strings.Replace(files.URL, "://", "://user:"+linkPassword+"@", 1), others.URL, ending.script)})
			// The Dockerfile itself has one in an address, as people write them; the context is not searched.
			out := filepath.Join(tmp, "out.tar")
			cmd := p.kiln("-t", "app", "-o", "type=image", "-o", "type=oci,dest="+out, "--secret", "id=file,src="+secretFile, "--secret", "id=env,env=KILN_TEST_SECRET",
				"--secret", "id=HTTP_AUTH_HEADER_127.0.0.1,src="+header,
				"--ssh", "default="+pemFile, "--build-arg", "HTTPS_PROXY=http://user:"+proxy+"@127.0.0.1:9/")
			cmd.Env = append(cmd.Env, "KILN_TEST_SECRET="+env, "DOCKER_CONFIG="+given, "TMPDIR="+tmp)
			pipe, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			ready := false
			lines := bufio.NewScanner(io.TeeReader(pipe, &log))
			for lines.Scan() {
				if ending.name == "killed" && strings.HasSuffix(lines.Text(), " ready") {
					ready = true
					cmd.Process.Kill()
				}
			}
			err = cmd.Wait()
			exit, _ := err.(*exec.ExitError)
			switch {
			case ending.name == "ok" && err != nil, ending.name == "fail" && (exit == nil || !strings.Contains(log.String(), "exit code: 3") && !strings.Contains(log.String(), "exit status 3")),
				ending.name == "killed" && !ready, ending.name == "full" && !strings.Contains(strings.ToLower(log.String()), "no space left"):
				t.Fatalf("it has not ended as it should: %v\n%s", err, log.String())
			}
			look := func(where string, data []byte) {
				for what, s := range secrets {
					for _, form := range forms(s) {
						if bytes.Contains(data, form) {
							t.Errorf("%s is in %s, as %q", what, where, form)
						}
					}
				}
			}
			look("the log", log.Bytes())
			for _, dir := range []string{p.root, tmp} {
				err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
					if err != nil {
						return err
					}
					look("the name of "+path, []byte(e.Name()))
					if !e.Type().IsRegular() {
						return nil
					}
					data, err := os.ReadFile(path)
					look(path, data)
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
