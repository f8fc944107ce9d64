package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/buildid"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	sessionauth "github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/solver/pb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/registry/registrytest"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	a.cert = &x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// sign returns a certificate for a name, which a server at 127.0.0.1 can have as well, and which is valid until a time.
func (a *authority) sign(name string, until time.Time) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// roots has the authority alone.
func (a *authority) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// users is a kilnd that is reached by TCP.
type users struct {
	*instance
	address string
	*authority
}

// startForUsers starts a kilnd that serves users by TCP, whom certificates of one authority tell apart.
func startForUsers(t *testing.T) *users {
	t.Helper()
	u := &users{authority: newAuthority(t)}
	dir := t.TempDir()
	server := u.sign("kilnd", time.Now().Add(time.Hour))
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"ca.pem": {Type: "CERTIFICATE", Bytes: u.cert.Raw}, "cert.pem": {Type: "CERTIFICATE", Bytes: server.Certificate[0]},
		"key.pem": {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u.address = l.Addr().String()
	l.Close()
	u.instance = startDaemon(t, dir, "--addr", "tcp://"+u.address, "--tlscacert", filepath.Join(dir, "ca.pem"),
		"--tlscert", filepath.Join(dir, "cert.pem"), "--tlskey", filepath.Join(dir, "key.pem"))
	return u
}

// with returns kilnd as whoever has these certificates reaches it.
func (u *users) with(certs ...tls.Certificate) *instance {
	u.authority.t.Helper()
	d := &instance{t: u.authority.t, dir: u.dir, process: u.process, done: u.done}
	d.connect(u.address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: u.roots(), Certificates: certs})))
	return d
}

// user returns kilnd as the user of a name reaches it.
func (u *users) user(name string) *instance {
	u.authority.t.Helper()
	return u.with(u.sign(name, time.Now().Add(time.Hour)))
}

// By TCP only those are served whom the authority knows, and no longer than it says.
func TestCertificates(t *testing.T) {
	u := startForUsers(t)
	soon := time.Now().Add(time.Hour)
	for name, certs := range map[string][]tls.Certificate{
		"no certificate":    nil,
		"another authority": {newAuthority(t).sign("alice", soon)},
		"expired":           {u.sign("alice", time.Now().Add(-time.Minute))},
	} {
		if _, err := u.with(certs...).control.Info(t.Context(), &controlapi.InfoRequest{}); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := u.user("alice").control.Info(t.Context(), &controlapi.InfoRequest{}); err != nil {
		t.Error(err)
	}
	// buildx names no protocol in the handshake.
	config := &tls.Config{RootCAs: u.roots(), Certificates: []tls.Certificate{u.sign("alice", soon)}}
	d := &instance{t: t}
	d.connect("passthrough:///"+u.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
		}))
	if _, err := d.control.Info(t.Context(), &controlapi.InfoRequest{}); err != nil {
		t.Error(err)
	}
}

// A user sees the builds of others in the history, and can neither use their sessions nor say what their builds make.
func TestUsers(t *testing.T) {
	u := startForUsers(t)
	alice, bob := u.user("alice"), u.user("bob")
	dir := dockerfile(t)
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	hers, his := alice.session(dir), bob.session(dir)
	defer hers.Close()
	defer his.Close()
	if err := bob.build(t.Context(), his, "his"); err != nil {
		t.Fatal(err)
	}

	returned, ended := alice.waiting("hers", hers)
	list, err := bob.control.ListenBuildHistory(t.Context(), &controlapi.BuildHistoryRequest{ActiveOnly: true, EarlyExit: true})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := list.Recv(); err != nil || e.Record.GetRef() != "hers" {
		t.Errorf("the history has %v, %v", e, err)
	}
	ctx := buildid.AppendToOutgoingContext(t.Context(), "hers")
	if _, err := bob.bridge.Ping(ctx, &gateway.PingRequest{}); status.Code(err) != codes.NotFound {
		t.Errorf("another user reached the build: %v", err)
	}
	solve := &gateway.SolveRequest{Frontend: "dockerfile.v0", Evaluate: true}
	if _, err := bob.bridge.Solve(ctx, solve); status.Code(err) != codes.NotFound {
		t.Errorf("another user had the build make something: %v", err)
	}
	if _, err := bob.bridge.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{}}); status.Code(err) != codes.NotFound {
		t.Errorf("another user has returned the result of the build: %v", err)
	}
	with := &controlapi.SolveRequest{Ref: "with her session", Session: hers.ID(), Frontend: "dockerfile.v0"}
	if _, err := bob.control.Solve(t.Context(), with); err == nil {
		t.Error("another user has built with the session")
	}
	same := &controlapi.SolveRequest{Ref: "hers", Session: his.ID(), Frontend: "dockerfile.v0"}
	if _, err := bob.control.Solve(t.Context(), same); status.Code(err) != codes.AlreadyExists {
		t.Errorf("another user's build has the ref of one that goes on: %v", err)
	}
	select {
	case err := <-ended:
		t.Fatalf("the build ended before its client wanted: %v", err)
	default:
	}
	if err := returned(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := alice.build(t.Context(), hers, "hers again"); err != nil {
		t.Error(err)
	}
}

// password is what a client knows of a registry.
type password struct {
	sessionauth.UnimplementedAuthServer
	user, secret string
}

func (p *password) Register(s *grpc.Server) { sessionauth.RegisterAuthServer(s, p) }

func (p *password) Credentials(context.Context, *sessionauth.CredentialsRequest) (*sessionauth.CredentialsResponse, error) {
	return &sessionauth.CredentialsResponse{Username: p.user, Secret: p.secret}, nil
}

// The credentials of one client give it an image that is private, and no other client the image under its name, although it is cached.
func TestPrivateImage(t *testing.T) {
	r := registrytest.StartWithUser(t, "alice", "secret")
	login := base64.StdEncoding.EncodeToString([]byte("alice:secret"))
	t.Setenv("DOCKER_AUTH_CONFIG", fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, r.Host, login)) // which is the daemon's, and for no client
	u := startForUsers(t)
	dir := dockerfile(t)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a", "a")
	build := func(d *instance, ref string, who *password, exporters ...*controlapi.Exporter) error {
		s := d.session(dir, who)
		defer s.Close()
		_, err := d.control.Solve(t.Context(), &controlapi.SolveRequest{
			Ref: ref, Session: s.ID(), Frontend: "dockerfile.v0", Exporters: exporters,
		})
		return err
	}
	alice, bob := u.user("alice"), u.user("bob")
	name := r.Host + "/private:v1"
	push := &controlapi.Exporter{Type: "image", Attrs: map[string]string{"name": name, "push": "true", "store": "false"}}
	if err := build(alice, "no credentials", &password{}, push); err == nil {
		t.Fatal("the registry takes an image from anybody")
	}
	if err := build(alice, "push", &password{user: "alice", secret: "secret"}, push); err != nil {
		t.Fatal(err)
	}
	write("Dockerfile", "FROM "+name+" AS base\nFROM scratch\nCOPY --from=base / /\n")
	if err := build(alice, "allowed", &password{user: "alice", secret: "secret"}); err != nil {
		t.Fatal(err)
	}
	for ref, who := range map[string]*password{"none": {}, "wrong": {user: "alice", secret: "guess"}} {
		for user, d := range map[string]*instance{"alice": alice, "bob": bob} {
			if err := build(d, user+" "+ref, who); err == nil || !strings.Contains(err.Error(), "401") {
				t.Errorf("%s with the credentials %q: %v", user, ref, err)
			}
		}
	}
	if err := build(bob, "allowed as well", &password{user: "alice", secret: "secret"}); err != nil {
		t.Error(err)
	}
}

// A digest is no secret: what the registry has shown to one user by it is for no other one, whichever registry they name. Whom the registry
// has shown the image need not ask again.
func TestPrivateDigest(t *testing.T) {
	r := registrytest.StartWithUser(t, "alice", "secret")
	u := startForUsers(t)
	alice, bob, carol := u.user("alice"), u.user("bob"), u.user("carol")
	known, unknown := &password{user: "alice", secret: "secret"}, &password{}
	dir := dockerfile(t)
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := alice.session(dir, known)
	defer s.Close()
	pushed, err := alice.control.Solve(t.Context(), &controlapi.SolveRequest{
		Ref: "push", Session: s.ID(), Frontend: "dockerfile.v0", Exporters: []*controlapi.Exporter{{
			Type: "image", Attrs: map[string]string{"name": r.Host + "/private:v1", "push": "true", "store": "false"},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	sum := pushed.ExporterResponse["containerimage.digest"]
	data, err := os.ReadFile(filepath.Join(r.Dir, "docker/registry/v2/blobs/sha256", sum[7:9], sum[7:], "data"))
	if err != nil {
		t.Fatal(err)
	}
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"platform":%s}]}`,
		ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, sum, len(data), `{"os":"linux","architecture":"`+runtime.GOARCH+`"}`)
	// A registry that says that it has the image, and cannot give it.
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v2/":
		case path.Base(r.URL.Path) == "index":
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			_, _ = io.WriteString(w, index)
		case r.Method == http.MethodHead:
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", sum)
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		default:
			http.NotFound(w, r)
		}
	}))
	defer liar.Close()
	elsewhere := liar.Listener.Addr().String()
	stored, err := alice.control.Solve(t.Context(), &controlapi.SolveRequest{
		Ref: "store", Session: s.ID(), Frontend: "dockerfile.v0",
		Exporters: []*controlapi.Exporter{{Type: "image", Attrs: map[string]string{"name": r.Host + "/stored:v1"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	kept := stored.ExporterResponse["containerimage.digest"]
	private := r.Host + "/private@" + sum
	for i, tc := range []struct {
		user *instance
		who  *password
		name string
		err  string // "" for none
	}{
		{alice, known, private, ""}, // from here on the store has it
		{bob, unknown, private, "401"},
		{bob, unknown, r.Host + "/private:v1@" + sum, "401"},
		{alice, known, r.Host + "/other@" + sum, "not found"},
		{bob, unknown, r.Host + "/stored:v2@" + kept, "401"},
		{bob, unknown, r.Host + "/stored:v1@" + kept, ""}, // which is for all under that name
		{bob, unknown, elsewhere + "/private@" + sum, "not found"},
		{bob, unknown, elsewhere + "/private:v1", "not found"},
		{bob, unknown, elsewhere + "/private:index", "not found"},
		{alice, unknown, private, ""},
		{bob, known, private, ""},
		{bob, unknown, private, ""},
		{carol, known, r.Host + "/private:v1", ""},
		{carol, unknown, private, ""},
	} {
		dir := t.TempDir()
		text := "FROM " + tc.name + " AS base\nFROM scratch\nCOPY --from=base / /\n"
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		s := tc.user.session(dir, tc.who)
		_, err := tc.user.control.Solve(t.Context(), &controlapi.SolveRequest{
			Ref: fmt.Sprintf("build%d", i), Session: s.ID(), Frontend: "dockerfile.v0",
		})
		s.Close()
		if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("build %d, of %s: got %v, want %q", i, tc.name, err, tc.err)
		}
	}
}

// vault is a client with one secret.
type vault struct {
	secrets.UnimplementedSecretsServer
}

func (*vault) Register(s *grpc.Server) { secrets.RegisterSecretsServer(s, &vault{}) }

func (*vault) GetSecret(_ context.Context, r *secrets.GetSecretRequest) (*secrets.GetSecretResponse, error) {
	if r.ID != "word" {
		return nil, status.Error(codes.NotFound, "there is no such secret")
	}
	return &secrets.GetSecretResponse{Data: []byte("secret")}, nil
}

// A build can be given the result of another one that goes on, as bake and compose do it. The steps have the secrets of that one, whichever
// of them runs the steps first, if both are of one user.
func TestInputs(t *testing.T) {
	u := startForUsers(t)
	base, top := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		filepath.Join(base, "Dockerfile"): "FROM scratch\nCOPY --chmod=755 busybox /bin/sh\n" +
			"RUN --mount=type=secret,id=word,required [ \"$(cat /run/secrets/word)\" = secret ]\n",
		filepath.Join(top, "Dockerfile"): "FROM base\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("%v: install busybox-static", err)
	}
	data, err := os.ReadFile(program)
	for _, dir := range []string{base, top} { // another user has not the directory of the first one either
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "busybox"), data, 0o755)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	alice, again, bob := u.user("alice"), u.user("alice"), u.user("bob")
	s := alice.session(base, &vault{})
	defer s.Close()
	returned, ended := alice.waiting("base", s)
	made, err := alice.bridge.Solve(buildid.AppendToOutgoingContext(t.Context(), "base"), &gateway.SolveRequest{Frontend: "dockerfile.v0"})
	if err != nil {
		t.Fatal(err)
	}
	on := func(d *instance) error {
		s := d.session(top)
		defer s.Close()
		_, err := d.control.Solve(t.Context(), &controlapi.SolveRequest{
			Ref: s.ID(), Session: s.ID(), Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"context:base": "input:base"},
			FrontendInputs: map[string]*pb.Definition{"base": made.Result.GetRef().GetDef()},
		})
		return err
	}
	if err := on(bob); err == nil || !strings.Contains(err.Error(), "word") {
		t.Errorf("another user has built with the secret: %v", err)
	}
	if err := on(again); err != nil {
		t.Error(err)
	}
	if err := returned(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
