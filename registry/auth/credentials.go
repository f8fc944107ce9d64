package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/regularfile"
	"github.com/kilnbuild/kiln/internal/userns"
)

// hubKey is the name that Docker's configuration has for docker.io.
const hubKey = "https://index.docker.io/v1/"

// Limits of input.
const (
	// maxCredentials bounds config.json, and what a helper prints, in bytes.
	maxCredentials = 1 << 20
	// helperTimeout bounds a helper, which may ask the user to unlock a key store.
	helperTimeout = time.Minute
)

// credential authenticates a user. The zero value stands for no credentials.
type credential struct {
	username, password string
	identityToken      string // a refresh token of OAuth 2
	registryToken      string // a bearer token as it is
}

// Keychain finds credentials where Docker keeps them, in config.json and in the helpers that it names, and then by the helpers that
// kiln.toml names. Each is looked up once.
type Keychain struct {
	settings config.Registries
	// source, unless it is nil, is asked in place of all that.
	source Source

	mu    sync.Mutex
	env   *dockerConfig // that of the environment; nil without one, or before it was asked for
	file  *dockerConfig // nil before it was needed
	asked bool          // whether env was
	err   error
	known map[string]found
}

// found is what a Keychain knows of a registry.
type found struct {
	credential
	helper string // kiln.toml's, if it was asked, without its prefix
	why    error  // why that helper has no credentials; nil if it just has none
}

// dockerConfig is the part of config.json that kiln uses.
type dockerConfig struct {
	path        string
	Auths       map[string]authEntry `json:"auths"`
	CredsStore  string               `json:"credsStore"`
	CredHelpers map[string]string    `json:"credHelpers"`
	// Proxies are by endpoint; "default" is for all others.
	Proxies map[string]proxyEntry `json:"proxies"`
}

type authEntry struct {
	Auth          string `json:"auth,omitempty"`
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

// NewKeychain returns a Keychain that reads no file until it is first asked. Settings are kiln.toml's.
func NewKeychain(settings config.Registries) *Keychain {
	return &Keychain{settings: settings, known: map[string]found{}}
}

// Lookup returns the credentials for a registry by its name in image names, or the zero value when there are none.
func (k *Keychain) Lookup(ctx context.Context, registry string) (credential, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f, ok := k.known[registry]; ok {
		return f.credential, nil
	}
	look := k.find
	if k.source != nil {
		look = k.fromSource
	}
	cred, err := look(ctx, registry)
	f := found{credential: cred}
	if err == nil && cred == (credential{}) && k.source == nil {
		f = k.ask(ctx, registry)
		err = ctx.Err()
	}
	if err != nil {
		return credential{}, err
	}
	k.known[registry] = f
	return f.credential, nil
}

// ask asks the helper that kiln.toml names. It is asked for registries that nobody has named in particular, and many images can be had
// without credentials. So one that fails, for example where no cloud has given the machine an identity, is no error.
func (k *Keychain) ask(ctx context.Context, registry string) (f found) {
	if f.helper = k.settings.CredentialHelper(registry); f.helper != "" {
		_, key := (&dockerConfig{}).helperFor(registry)
		f.credential, f.why = askHelper(ctx, f.helper, key)
	}
	return f
}

// find looks into the environment, and then into the file.
func (k *Keychain) find(ctx context.Context, registry string) (credential, error) {
	if !k.asked {
		k.asked = true
		k.env, k.err = environmentConfig()
	}
	if k.env != nil && k.err == nil {
		if cred, err := k.env.lookup(ctx, registry); err != nil || cred != (credential{}) {
			return cred, err
		}
	}
	if k.file == nil && k.err == nil {
		k.file, k.err = readDockerConfig()
	}
	if k.err != nil {
		return credential{}, k.err
	}
	return k.file.lookup(ctx, registry)
}

// Describe says where credentials were looked for, and whether there were any.
func (k *Keychain) Describe(registry string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	f, asked := k.known[registry]
	none := f.credential == credential{}
	switch {
	case k.source != nil:
		return k.describeSource(registry, asked, f)
	case asked && f.helper != "" && f.why != nil:
		return fmt.Sprintf("%s, which kiln.toml names for %s, gave no credentials: %v", helperPrefix+f.helper, registry, f.why)
	case asked && f.helper != "" && none:
		return fmt.Sprintf("%s, which kiln.toml names, has no credentials for %s", helperPrefix+f.helper, registry)
	case asked && f.helper != "":
		return "the credentials are those of " + helperPrefix + f.helper
	case asked && k.file == nil:
		return "the credentials are those of $" + environmentVariable
	case !asked || k.file == nil:
		return "kiln was not asked for credentials"
	case k.file.path == "":
		return "there is no file of credentials"
	case none:
		return fmt.Sprintf("%s has no credentials for %s", k.file.path, registry)
	}
	return "the credentials are those of " + k.file.path
}

// environmentVariable may hold the text of a config.json, whose credentials come before those of the file. See docker/cli,
// cli/config/configfile.
const environmentVariable = "DOCKER_AUTH_CONFIG"

// environmentConfig returns the configuration in the environment; nil for none.
func environmentConfig() (*dockerConfig, error) {
	text := os.Getenv(environmentVariable)
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	return parseDockerConfig("$"+environmentVariable, []byte(text))
}

// InEnvironment reports whether the environment has credentials of a registry, which come before stored ones.
func InEnvironment(registry string) bool {
	c, err := environmentConfig()
	if err != nil || c == nil {
		return false
	}
	_, key := c.helperFor(registry)
	for name := range c.Auths {
		if hostOf(name) == hostOf(key) {
			return true
		}
	}
	return false
}

// configPaths returns where the configuration may be: Docker's place first, then those of podman, skopeo and buildah, whose
// file has the same form.
func configPaths() []string {
	var paths []string
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		paths = append(paths, filepath.Join(dir, "config.json"))
	} else if home, err := os.UserHomeDir(); err == nil {
		paths = append(paths, filepath.Join(home, ".docker", "config.json"))
	}
	if file := os.Getenv("REGISTRY_AUTH_FILE"); file != "" {
		paths = append(paths, file)
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		paths = append(paths, filepath.Join(dir, "containers", "auth.json"))
	}
	if dir, err := os.UserConfigDir(); err == nil {
		paths = append(paths, filepath.Join(dir, "containers", "auth.json"))
	}
	return paths
}

func readDockerConfig() (*dockerConfig, error) {
	for _, path := range configPaths() {
		c, err := readConfigFile(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
	}
	return &dockerConfig{}, nil
}

// Check returns the file that has the credentials, or "", and the helpers that it and kiln.toml, whose settings are given, name and that
// are not installed. It runs none.
func Check(settings config.Registries) (path string, missing []string, err error) {
	if _, err := environmentConfig(); err != nil {
		return "", nil, err
	}
	c, err := readDockerConfig()
	if err != nil {
		return "", nil, err
	}
	helpers := slices.Collect(maps.Values(c.CredHelpers))
	if c.CredsStore != "" {
		helpers = append(helpers, c.CredsStore)
	}
	for _, r := range settings {
		if r.CredentialHelper != "" {
			helpers = append(helpers, r.CredentialHelper)
		}
	}
	slices.Sort(helpers)
	for _, h := range slices.Compact(helpers) {
		if _, err := exec.LookPath("docker-credential-" + h); err != nil {
			missing = append(missing, "docker-credential-"+h)
		}
	}
	return c.path, missing, nil
}

func readConfigFile(path string) (*dockerConfig, error) {
	data, err := regularfile.Read(path, maxCredentials)
	if err != nil {
		return nil, err
	}
	return parseDockerConfig(path, data)
}

func parseDockerConfig(path string, data []byte) (*dockerConfig, error) {
	c := &dockerConfig{path: path}
	if len(bytes.TrimSpace(data)) == 0 {
		return c, nil // docker too takes an empty file for one that says nothing
	}
	if err := json.Unmarshal(data, c); err != nil {
		// The decoder's message could quote what is in the file.
		return nil, fmt.Errorf("%s is not as Docker writes it", path)
	}
	return c, nil
}

func (c *dockerConfig) lookup(ctx context.Context, registry string) (credential, error) {
	helper, key := c.helperFor(registry)
	if helper != "" {
		cred, err := askHelper(ctx, helper, key)
		if err != nil || cred != (credential{}) {
			return cred, err
		}
	}
	entry, ok := c.Auths[key]
	for name, e := range c.Auths {
		if !ok && hostOf(name) == hostOf(key) {
			entry = e
		}
	}
	return entry.credential(c.path)
}

// hostOf returns the host in a key of config.json, which may be an address of Docker's first protocol.
func hostOf(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(strings.TrimSuffix(key, "/"), "/v1")
	key = strings.TrimSuffix(key, "/v2")
	if key == config.DockerHub || key == "registry-1.docker.io" {
		key = "index.docker.io"
	}
	return key
}

func (e authEntry) credential(path string) (credential, error) {
	cred := credential{username: e.Username, password: e.Password, identityToken: e.IdentityToken, registryToken: e.RegistryToken}
	if e.Auth != "" {
		data, err := base64.StdEncoding.DecodeString(e.Auth)
		user, password, ok := strings.Cut(string(data), ":")
		if err != nil || !ok {
			return credential{}, fmt.Errorf("an auth in %s is not base64 of user:password", path)
		}
		cred.username, cred.password = user, strings.TrimRight(password, "\x00")
	}
	return cred, nil
}

// helperEnvironment are the variables, or prefixes of their names, that helpers inherit from kiln: those that configure the helpers of
// well-known clouds and key stores. Variables of a build, and those that make a program load code, are not passed on.
var helperEnvironment = []string{
	"HOME=", "PATH=", "USER=", "LOGNAME=", "LANG=", "LC_ALL=", "TMPDIR=", "DISPLAY=", "WAYLAND_DISPLAY=", "DBUS_SESSION_BUS_ADDRESS=",
	"HTTP_PROXY=", "HTTPS_PROXY=", "NO_PROXY=", "http_proxy=", "https_proxy=", "no_proxy=", "SSL_CERT_FILE=", "SSL_CERT_DIR=",
	"GNUPGHOME=", "GPG_TTY=", "PASSWORD_STORE_DIR=",
	"XDG_", "AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_", "ACR_", "DOCKER_CONFIG="}

// maxHelperQuote bounds how much of a helper's complaint an error repeats, in bytes.
const maxHelperQuote = 1 << 10

// helperPrefix begins the name of a credential helper's program.
const helperPrefix = "docker-credential-"

// askHelper asks a credential helper for the credentials of a server; the zero value stands for none.
func askHelper(ctx context.Context, name, server string) (credential, error) {
	out, err := runHelper(ctx, name, "get", server)
	if failed, ok := errors.AsType[*helperError](err); ok && strings.Contains(failed.said, "credentials not found") {
		return credential{}, nil
	}
	if err != nil {
		return credential{}, err
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out, &answer); err != nil {
		return credential{}, fmt.Errorf("run %s: it printed no credentials", helperPrefix+name)
	}
	if answer.Username == "<token>" {
		return credential{identityToken: answer.Secret}, nil
	}
	return credential{username: answer.Username, password: answer.Secret}, nil
}

// helperError says that a credential helper failed, and what it printed.
type helperError struct {
	path, said string
	err        error
}

func (e *helperError) Error() string {
	s := fmt.Sprintf("run %s: %v", e.path, e.err)
	if e.said != "" {
		s += ": " + fetch.Quote(e.said)
	}
	return s
}

func (e *helperError) Unwrap() error { return e.err }

// runHelper runs docker-credential-NAME of PATH for an action, "get", "store" or "erase", and returns what it prints. A helper that is
// not there is an error: going on without would ask another account's images, or send what belongs to one server to another. See
// docker-credential-helpers, "Credential helper protocol".
func runHelper(ctx context.Context, name, action, request string) ([]byte, error) {
	if strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("%q is not the name of a credential helper", name)
	}
	path, err := exec.LookPath(helperPrefix + name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return nil, fmt.Errorf("run credential helper: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, action)
	cmd.Env = []string{}
	for _, v := range os.Environ() {
		for _, p := range helperEnvironment {
			if strings.HasPrefix(v, p) {
				cmd.Env = append(cmd.Env, v)
				break
			}
		}
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = userns.AsCaller(nil)
	cmd.Stdin = strings.NewReader(request)
	cmd.WaitDelay = time.Second // for pipes that a helper's children hold open
	out, complaint := &limitedBuffer{limit: maxCredentials}, &limitedBuffer{limit: maxHelperQuote}
	cmd.Stdout, cmd.Stderr = out, complaint
	err = cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // an agent that the helper has started may go on
		return out.data, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("it has not ended after %v", helperTimeout)
	}
	said := strings.TrimSpace(string(out.data))
	if strings.HasPrefix(said, "{") {
		said = "" // it may be credentials
	}
	return nil, &helperError{path, strings.TrimSpace(said + "\n" + string(complaint.data)), err}
}

// limitedBuffer keeps the first limit bytes of what is written to it. It has no other methods of a buffer: io.Copy would call ReadFrom.
type limitedBuffer struct {
	data  []byte
	limit int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.data = append(b.data, p[:min(b.limit-len(b.data), len(p))]...)
	return len(p), nil
}
