//go:build e2e

// Package caches tests caches that travel by way of real servers, of S3 and of Azure Blob Storage. What it needs is installed by the Makefile.
package caches

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/cache/remote/azblob"
	"github.com/kilnbuild/kiln/cache/remote/bucket"
	"github.com/kilnbuild/kiln/cache/remote/remotetest"
	"github.com/kilnbuild/kiln/cache/remote/s3"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/solver"
)

// tool returns the path of a program that make e2e installs below TOOLS.
func tool(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(os.Getenv("TOOLS"), name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("make e2e installs %s into the directory TOOLS: %v", name, err)
	}
	return path
}

// freePort returns a port of this machine at which nothing listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// serve starts a server, and waits until it answers at an address.
func serve(t *testing.T, address string, cmd *exec.Cmd) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		log.Close()
	})
	for {
		resp, err := http.Get("http://" + address)
		if err == nil {
			resp.Body.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("%s: %v\n%s", cmd.Path, err, text)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

const (
	s3ID     = "kilntest"
	s3Secret = "kilntest-secret"
)

// versitygw starts an S3 server with one bucket, and returns its address, and the directory with the bucket's objects.
func versitygw(t *testing.T, bucket string) (endpoint, dir string) {
	t.Helper()
	top := t.TempDir()
	for _, dir := range []string{filepath.Join("data", bucket), "sidecar"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	address := "127.0.0.1:" + freePort(t)
	// Temporary file systems have no extended attributes for users on older kernels, so those are kept beside the files.
	serve(t, address, exec.Command(tool(t, "versitygw"), "--port", address, "--access", s3ID, "--secret", s3Secret, "--keep-alive", "--quiet",
		"posix", "--sidecar", filepath.Join(top, "sidecar"), filepath.Join(top, "data")))
	return "http://" + address, filepath.Join(top, "data", bucket)
}

const (
	azureAccount   = "kilntest"
	azureContainer = "cache"
)

var azureKey = base64.StdEncoding.EncodeToString([]byte("key of kiln's tests"))

// azurite starts a server of Azure Blob Storage with one container, and returns the address of the account.
func azurite(t *testing.T) string {
	t.Helper()
	port := freePort(t)
	cmd := exec.Command("node", tool(t, "node_modules/.bin/azurite-blob"), "--blobHost", "127.0.0.1", "--blobPort", port,
		"--location", t.TempDir(), "--silent", "--skipApiVersionCheck", "--disableTelemetry")
	cmd.Env = append(os.Environ(), "AZURITE_ACCOUNTS="+azureAccount+":"+azureKey)
	serve(t, "127.0.0.1:"+port, cmd)
	account := "http://127.0.0.1:" + port + "/" + azureAccount
	key, err := container.NewSharedKeyCredential(azureAccount, azureKey)
	if err != nil {
		t.Fatal(err)
	}
	client, err := container.NewClientWithSharedKeyCredential(account+"/"+azureContainer, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return account
}

func TestAzureRepository(t *testing.T) {
	account := azurite(t)
	remotetest.Run(t, remotetest.Traits{}, func(t *testing.T) remote.Repository {
		c, err := azblob.Open(azblob.Options{AccountURL: account, Container: azureContainer, Key: azureKey})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		l := bucket.Layout{Prefix: "odd+prefix&%41=ö/", Blobs: bucket.DefaultBlobs, Manifests: bucket.DefaultManifests, Name: "kiln"}
		return bucket.New(c, l, c.Where(l.Prefix))
	})
}

func TestAzure(t *testing.T) {
	account := azurite(t)
	spec := "type=azblob,container=cache,name=app,prefix=team/,account_url=" + account
	key := ",secret_access_key=" + azureKey
	travel(t, spec+key)

	dir := project(t)
	wrong := ",secret_access_key=" + base64.StdEncoding.EncodeToString([]byte("wrong"))
	for _, tc := range []struct{ spec, want string }{
		{strings.Replace(spec, "container=cache", "container=nowhere", 1) + key, "404 .*ContainerNotFound; create the container nowhere"},
		{spec + wrong, "403 .*AuthorizationFailure; check the credentials"},
		{strings.Replace(spec, account, "http://127.0.0.1:1/"+azureAccount, 1) + key, "connection refused"},
	} {
		_, log := machine(t).build(dir, "--cache-from", tc.spec, "--cache-to", tc.spec)
		for _, what := range []string{"WARN: the cache 127.* is not used: .*", "WARN: the cache was not exported to 127.*"} {
			if n := len(regexp.MustCompile(what+tc.want).FindAllString(log, -1)); n != 1 {
				t.Errorf("%d warnings %q in\n%s", n, what+tc.want, log)
			}
		}
		if strings.Contains(log, "secret_access_key") {
			t.Error("a secret is shown")
		}
	}
}

// openS3 returns a repository below a prefix of a bucket.
func openS3(t *testing.T, endpoint, prefix string) *bucket.Repository {
	t.Helper()
	b, err := s3.Open(s3.Options{
		Bucket: "cache", Region: "us-east-1", Endpoint: endpoint, PathStyle: true, AccessKeyID: s3ID, SecretAccessKey: s3Secret,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	l := bucket.Layout{Prefix: prefix, Blobs: bucket.DefaultBlobs, Manifests: bucket.DefaultManifests, Name: "kiln"}
	if err := l.Check(); err != nil {
		t.Fatal(err)
	}
	return bucket.New(b, l, b.Where(prefix))
}

func TestS3Repository(t *testing.T) {
	endpoint, dir := versitygw(t, "cache")
	remotetest.Run(t, remotetest.Traits{}, func(t *testing.T) remote.Repository { return openS3(t, endpoint, "odd+prefix&%41=ö/") })
	err := filepath.WalkDir(filepath.Join(dir, ".sgwtmp"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			t.Errorf("%s is left of an upload", path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// What no manifest names is removed once it is old, and not what a writer relies upon.
func TestS3Sweep(t *testing.T) {
	endpoint, dir := versitygw(t, "cache")
	sweep(t, openS3(t, endpoint, ""), func(d digest.Digest) {
		path := filepath.Join(dir, "blobs", "sha256", d.Encoded())
		old := time.Now().Add(-72 * time.Hour)
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	})
}

// sweep tests Prune; age makes a blob three days old.
func sweep(t *testing.T, r remote.Repository, age func(digest.Digest)) {
	t.Helper()
	put := func(text string) ocispec.Descriptor {
		t.Helper()
		desc, open := remotetest.Blob(text)
		if err := r.Put(t.Context(), desc, open); err != nil {
			t.Fatal(err)
		}
		return desc
	}
	named, unnamed, young, reused := put("named"), put("unnamed"), put("young"), put("reused")
	p := remotetest.One("step")
	p.AddLayer(pack.Layer{ID: layer.ID(strings.Repeat("a", 64)), Manifest: named, Blobs: map[string]pack.Blob{"gzip": {Desc: named, DiffID: named.Digest}}})
	for key, r := range p.Records {
		r.Outputs = []solver.Made{{Layer: solver.Layer{ID: strings.Repeat("a", 64), Content: solver.Content{1}}}}
		p.Records[key] = r
	}
	if _, err := remote.Publish(t.Context(), r, "kiln", p, pack.Limit{}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []ocispec.Descriptor{named, unnamed, reused} {
		age(d.Digest)
	}
	put("reused")
	if _, _, err := remote.Prune(t.Context(), r, "kiln", pack.Limit{}, false); err != nil {
		t.Fatal(err)
	}
	for desc, want := range map[*ocispec.Descriptor]bool{&named: true, &unnamed: false, &young: true, &reused: true} {
		f, err := r.Open(t.Context(), *desc)
		if err == nil {
			f.Close()
		}
		if (err == nil) != want {
			t.Errorf("%s: %v", desc.Digest, err)
		}
	}
}

// kiln is one machine with an empty root directory.
type kiln struct {
	t    *testing.T
	env  []string
	root string
}

func machine(t *testing.T, env ...string) *kiln {
	t.Helper()
	path := os.Getenv("KILN")
	if path == "" {
		t.Fatal("$KILN does not say which kiln is to be tested; make e2e does")
	}
	root := t.TempDir()
	return &kiln{t, append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + root, "TMPDIR=" + root, "KILN_ROOT=" + filepath.Join(root, "root"), "KILN_CONFIG=" + os.DevNull,
		"DOCKER_CONFIG=" + root, "AWS_EC2_METADATA_DISABLED=true",
	}, env...), root}
}

// run runs kiln, and returns all of its output.
func (k *kiln) run(args ...string) (string, error) {
	k.t.Helper()
	cmd := exec.Command(os.Getenv("KILN"), args...)
	cmd.Env = k.env
	out, err := cmd.CombinedOutput()
	k.t.Logf("kiln %s: %v\n%s", strings.Join(args, " "), err, out)
	return string(out), err
}

// build runs kiln build in a directory, and returns the image's ID and the log.
func (k *kiln) build(dir string, args ...string) (id, log string) {
	k.t.Helper()
	file := filepath.Join(k.root, "id")
	log, err := k.run(append([]string{"build", "--progress=plain", "--iidfile", file, dir}, args...)...)
	if err != nil {
		k.t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		k.t.Fatal(err)
	}
	return string(text), log
}

// project makes a directory with a Dockerfile that needs no network.
func project(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	const dockerfile = `FROM scratch AS tools
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox dd if=/dev/urandom of=/large bs=1M count=40 2>/dev/null"]
FROM scratch
COPY busybox /bin/busybox
COPY --from=tools /large /large
COPY file /file
RUN ["/bin/busybox", "sh", "-c", "echo made > /made"]
`
	for name, data := range map[string][]byte{"Dockerfile": []byte(dockerfile), "busybox": busybox, "file": []byte("one\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// travel tests that machines find in a cache what others have put there; spec is what names it.
func travel(t *testing.T, spec string, env ...string) {
	dir := project(t)
	first, log := machine(t, env...).build(dir, "--cache-from", spec, "--cache-to", spec+",mode=max")
	if !strings.Contains(log, "does not exist yet") || strings.Contains(log, "was not exported") {
		t.Error("the log of the first build is wrong")
	}
	second, log := machine(t, env...).build(dir, "--cache-from", spec, "--cache-to", spec+",mode=max", "-o", "type=image")
	if second != first || strings.Count(log, "CACHED") < 5 || strings.Contains(log, "WARN") {
		t.Errorf("the second machine: image %s, want %s", second, first)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("two\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	third, log := machine(t, env...).build(dir, "--cache-from", spec, "--cache-to", spec+",mode=max,ignore-error=false")
	if third == first || strings.Count(log, "CACHED") < 3 || strings.Contains(log, "WARN") {
		t.Error("the third machine, of another branch")
	}
	fourth := machine(t, env...)
	if id, log := fourth.build(dir, "--cache-from", spec, "-o", "type=oci,dest="+filepath.Join(fourth.root, "out.tar")); id != third || strings.Count(log, "CACHED") < 5 || strings.Contains(log, "WARN") {
		t.Error("the fourth machine, which fetches all layers")
	}
	if out, err := fourth.run("cache", "ls", spec); err != nil || !strings.Contains(out, "COPY file /file") {
		t.Error("kiln cache ls")
	}
	if out, err := fourth.run("cache", "prune", "-f", "--all", spec); err != nil || !strings.Contains(out, "the cache has 0 steps") {
		t.Error("kiln cache prune")
	}
}

func TestS3(t *testing.T) {
	endpoint, _ := versitygw(t, "cache")
	spec := "type=s3,bucket=cache,region=us-east-1,use_path_style=true,name=app,prefix=team/,endpoint_url=" + endpoint
	keys := []string{"AWS_ACCESS_KEY_ID=" + s3ID, "AWS_SECRET_ACCESS_KEY=" + s3Secret}
	travel(t, spec, keys...)

	// Several names are several caches, and the keys may be in the value.
	dir := project(t)
	named := strings.Replace(spec, "team/", "other/", 1) + ",access_key_id=" + s3ID + ",secret_access_key=" + s3Secret
	machine(t).build(dir, "--cache-to", strings.Replace(named, "name=app", "mode=max,name=commit;branch/x", 1))
	for _, name := range []string{"commit", "branch/x"} {
		if _, log := machine(t).build(dir, "--cache-from", strings.Replace(named, "name=app", "name="+name, 1)); strings.Count(log, "CACHED") < 4 {
			t.Errorf("the cache %s is not used", name)
		}
	}

	for _, tc := range []struct {
		spec, want string
		env        []string
	}{
		{strings.Replace(spec, "bucket=cache", "bucket=nowhere", 1), "NoSuchBucket.*create the bucket nowhere", keys},
		{spec, "403 Forbidden.*check the credentials", []string{keys[0], "AWS_SECRET_ACCESS_KEY=wrong"}},
		{spec, "find credentials for S3: there are none: set AWS_ACCESS_KEY_ID", nil},
		{strings.Replace(spec, endpoint, "http://127.0.0.1:1", 1), "connection refused", keys},
	} {
		_, log := machine(t, tc.env...).build(dir, "--cache-from", tc.spec, "--cache-to", tc.spec)
		for _, what := range []string{"WARN: the cache s3://.* is not used: .*", "WARN: the cache was not exported to s3://.*"} {
			if n := len(regexp.MustCompile(what+tc.want).FindAllString(log, -1)); n != 1 {
				t.Errorf("%d warnings %q in\n%s", n, what+tc.want, log)
			}
		}
		if strings.Contains(log, s3Secret) || strings.Contains(log, "wrong") {
			t.Error("a secret is shown")
		}
	}
}
