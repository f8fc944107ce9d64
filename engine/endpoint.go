package engine

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/regularfile"
)

// defaultHost is where docker's own engine listens.
const defaultHost = "unix:///var/run/docker.sock"

// defaultContext is the name of the context that stands for $DOCKER_HOST, or defaultHost.
const defaultContext = "default"

// maxConfig bounds each file of docker's configuration, and each certificate, in bytes.
const maxConfig = 1 << 20

// Endpoint is where an engine can be reached.
type Endpoint struct {
	// Host is the address as docker writes it: "unix:///var/run/docker.sock" or "tcp://engine.example:2376".
	Host string
	// From says what named the address: "$DOCKER_HOST", "docker's context remote"; "" for the default.
	From string
	tls  tlsFiles
}

// tlsFiles says whether and how an engine is reached by TLS.
type tlsFiles struct {
	use bool
	// dir has ca.pem, cert.pem and key.pem, each of which may be missing.
	dir string
	// verify has the engine's certificate checked.
	verify bool
}

// Find returns the endpoint that docker would use (docker/cli, cli/command): that of $DOCKER_HOST, of the context named by $DOCKER_CONTEXT
// or by currentContext in config.json, or the default. It connects to nothing.
func Find() (Endpoint, error) {
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		return Endpoint{Host: host, From: "$DOCKER_HOST", tls: environmentTLS()}, nil
	}
	dir := configDir()
	name, from := os.Getenv("DOCKER_CONTEXT"), "$DOCKER_CONTEXT"
	if name == "" && dir != "" {
		var config struct {
			CurrentContext string `json:"currentContext"`
		}
		path := filepath.Join(dir, "config.json")
		if err := readJSON(path, &config); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Endpoint{}, err
		}
		name, from = config.CurrentContext, path
	}
	if name == "" || name == defaultContext {
		return Endpoint{Host: defaultHost, tls: environmentTLS()}, nil
	}
	return contextEndpoint(dir, name, from)
}

// contextEndpoint returns the endpoint of one of docker's contexts, which from names.
func contextEndpoint(dir, name, from string) (Endpoint, error) {
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	var meta struct {
		Endpoints map[string]struct {
			Host          string
			SkipTLSVerify bool
		}
	}
	err := readJSON(filepath.Join(dir, "contexts", "meta", id, "meta.json"), &meta)
	if errors.Is(err, fs.ErrNotExist) {
		return Endpoint{}, fmt.Errorf("docker has no context %q, which %s names; docker context ls lists them", name, from)
	}
	if err != nil {
		return Endpoint{}, err
	}
	docker, ok := meta.Endpoints["docker"]
	if !ok || docker.Host == "" {
		return Endpoint{}, fmt.Errorf("docker's context %q, which %s names, has no engine", name, from)
	}
	e := Endpoint{Host: docker.Host, From: fmt.Sprintf("docker's context %q", name)}
	certs := filepath.Join(dir, "contexts", "tls", id, "docker")
	if _, err := os.Stat(certs); err == nil || docker.SkipTLSVerify {
		e.tls = tlsFiles{use: true, dir: certs, verify: !docker.SkipTLSVerify}
	}
	return e, nil
}

// environmentTLS returns what $DOCKER_TLS, $DOCKER_TLS_VERIFY and $DOCKER_CERT_PATH say.
func environmentTLS() tlsFiles {
	t := tlsFiles{dir: os.Getenv("DOCKER_CERT_PATH"), verify: os.Getenv("DOCKER_TLS_VERIFY") != ""}
	t.use = t.verify || os.Getenv("DOCKER_TLS") != ""
	if t.dir == "" {
		t.dir = configDir()
	}
	return t
}

// configDir returns the directory of docker's configuration, "" without one.
func configDir() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker")
}

func readJSON(path string, v any) error {
	data, err := regularfile.Read(path, maxConfig)
	if err != nil {
		return err
	}
	if json.Unmarshal(data, v) != nil {
		return fmt.Errorf("%s is not as docker writes it", path) // the decoder's message could quote what is in the file
	}
	return nil
}

// config reads the certificates; nil is for plain HTTP.
func (t tlsFiles) config() (*tls.Config, error) {
	if !t.use {
		return nil, nil
	}
	c := &tls.Config{InsecureSkipVerify: !t.verify}
	ca, err := regularfile.Read(filepath.Join(t.dir, "ca.pem"), maxConfig)
	switch {
	case err == nil:
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s has no certificate in PEM form", filepath.Join(t.dir, "ca.pem"))
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	cert, certErr := regularfile.Read(filepath.Join(t.dir, "cert.pem"), maxConfig)
	key, keyErr := regularfile.Read(filepath.Join(t.dir, "key.pem"), maxConfig)
	if errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
		return c, nil
	}
	if err := errors.Join(certErr, keyErr); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("read the client certificate in %s: %w", t.dir, err)
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// address is an endpoint's address, taken apart.
type address struct {
	// socket is the path of a Unix socket; "" for one of TCP, which is at host, "name:port".
	socket, host string
}

// parse takes the address apart. It refuses what kiln does not reach.
func (e Endpoint) parse() (address, error) {
	scheme, rest, ok := strings.Cut(e.Host, "://")
	if !ok {
		return address{}, errors.New(`it is not an address such as "unix:///var/run/docker.sock" or "tcp://engine.example:2376"`)
	}
	switch scheme {
	case "unix":
		if !filepath.IsAbs(rest) {
			return address{}, errors.New("the path of the socket is not absolute")
		}
		return address{socket: filepath.Clean(rest)}, nil
	case "tcp", "http", "https":
		u, err := url.Parse("tcp://" + rest)
		if err != nil || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
			return address{}, errors.New("it is not tcp://HOST:PORT")
		}
		port := u.Port()
		if port == "" && e.tls.use {
			port = "2376"
		} else if port == "" {
			port = "2375"
		}
		return address{host: strings.TrimSuffix(u.Host, ":"+u.Port()) + ":" + port}, nil
	case "ssh":
		host := strings.Trim(rest, "/")
		return address{}, fmt.Errorf("kiln does not start ssh for an engine: forward its socket with "+
			"ssh -nNT -L /tmp/engine.sock:/var/run/docker.sock %s and set DOCKER_HOST=unix:///tmp/engine.sock", host)
	}
	return address{}, fmt.Errorf("%s:// is not supported: use unix:// or tcp://", scheme)
}
