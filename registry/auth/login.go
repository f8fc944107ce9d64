package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/regularfile"
	"golang.org/x/sys/unix"
)

// With returns a Keychain that has a user's password for one registry, by its name in image names, and reads no file.
func With(registry, user, password string) *Keychain {
	known := map[string]found{registry: {credential: credential{username: user, password: password}}}
	return &Keychain{file: &dockerConfig{}, asked: true, known: known}
}

// Stored is where the credentials of a registry are.
type Stored struct {
	// File is the path of config.json.
	File string
	// Helper is the program that keeps them, "docker-credential-pass"; "" where the file itself does.
	Helper string
}

// Store keeps a user's password for a registry, given by its name in image names, where Lookup finds it: in the credential helper that
// Docker's configuration names for the registry, or else in the configuration itself, encoded and not encrypted. Everything else in the
// file stays as it is.
func Store(ctx context.Context, registry, user, password string) (Stored, error) {
	if strings.Contains(user, ":") {
		return Stored{}, &input.Error{Err: fmt.Errorf("the user name %q has a colon, which basic authentication does not allow", user)}
	}
	c, path, err := writableConfig()
	if err != nil {
		return Stored{}, err
	}
	helper, key := c.helperFor(registry)
	entry := authEntry{Auth: base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}
	if helper != "" {
		request, err := json.Marshal(struct{ ServerURL, Username, Secret string }{key, user, password})
		if err != nil {
			return Stored{}, err
		}
		if _, err := runHelper(ctx, helper, "store", string(request)); err != nil {
			return Stored{}, err
		}
		entry, helper = authEntry{}, helperPrefix+helper // Docker lists the registries whose credentials a helper has
	}
	return Stored{File: path, Helper: helper}, edit(path, func(auths map[string]json.RawMessage) (err error) {
		for name := range auths {
			if hostOf(name) == hostOf(key) {
				delete(auths, name)
			}
		}
		auths[key], err = json.Marshal(entry)
		return err
	})
}

// Registries returns the names of the registries for which Docker's configuration has credentials or names a helper, sorted. No helper is
// asked.
func Registries() ([]string, error) {
	c, err := readDockerConfig()
	if err != nil {
		return nil, err
	}
	var names []string
	for key := range c.Auths {
		names = append(names, ServerName(key))
	}
	for key := range c.CredHelpers {
		names = append(names, ServerName(key))
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Erase removes the credentials of a registry, and reports whether there were any.
func Erase(ctx context.Context, registry string) (bool, error) {
	c, path, err := writableConfig()
	if err != nil {
		return false, err
	}
	helper, key := c.helperFor(registry)
	found := false
	if helper != "" {
		cred, err := askHelper(ctx, helper, key)
		if err != nil {
			return false, err
		}
		if found = cred != (credential{}); found {
			if _, err := runHelper(ctx, helper, "erase", key); err != nil {
				return false, err
			}
		}
	}
	var listed []string
	for name := range c.Auths {
		if hostOf(name) == hostOf(key) {
			listed = append(listed, name)
		}
	}
	if len(listed) == 0 {
		return found, nil
	}
	return true, edit(path, func(auths map[string]json.RawMessage) error {
		for _, name := range listed {
			delete(auths, name)
		}
		return nil
	})
}

// helperFor returns the credential helper of a registry, or "", and the key of the registry in config.json.
func (c *dockerConfig) helperFor(registry string) (helper, key string) {
	key = registry
	if registry == config.DockerHub {
		key = hubKey
	}
	helper = c.CredsStore
	for name, h := range c.CredHelpers {
		if hostOf(name) == hostOf(key) {
			return h, name
		}
	}
	return helper, key
}

// writableConfig returns the configuration that has the credentials and its path. If there is none, that is where Docker has it.
func writableConfig() (*dockerConfig, string, error) {
	c, err := readDockerConfig()
	if err != nil {
		return nil, "", err
	}
	if c.path != "" {
		path, err := filepath.EvalSymlinks(c.path) // the file is replaced, and not the link to it
		return c, path, err
	}
	paths := configPaths()
	if len(paths) == 0 {
		return nil, "", errors.New("store credentials: neither $DOCKER_CONFIG nor $HOME is set")
	}
	info, err := os.Lstat(paths[0])
	switch {
	case err == nil && info.Mode()&fs.ModeSymlink != 0:
		return nil, "", &input.Error{Err: fmt.Errorf("%s is a symbolic link to a file that does not exist", paths[0])}
	case err == nil:
		return writableConfig() // another login has just made it
	}
	return c, paths[0], nil
}

// edit calls change with the member "auths" of config.json, and writes the file with the result. The other members keep their text. Only
// the user can read the file; one writer at a time edits it.
func edit(path string, change func(auths map[string]json.RawMessage) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("change %s: %w", path, err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	members, err := readMembers(path)
	if err != nil {
		return err
	}
	auths := map[string]json.RawMessage{}
	if text := members["auths"]; text != nil {
		if auths, err = parseObject(text); err != nil {
			return errors.New("auths is not an object")
		}
	}
	if err := change(auths); err != nil {
		return err
	}
	if members["auths"], err = json.Marshal(auths); err != nil {
		return err
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "\t") // as Docker writes it
	if err := enc.Encode(members); err != nil {
		return err
	}
	return atomicfile.WriteBytes(path, dir.Name(), out.Bytes())
}

func readMembers(path string) (map[string]json.RawMessage, error) {
	data, err := regularfile.Read(path, maxCredentials)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]json.RawMessage{}, nil
	}
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return map[string]json.RawMessage{}, nil
	}
	members, err := parseObject(data)
	if err != nil {
		return nil, errors.New("it is not a JSON object")
	}
	return members, nil
}

// parseObject returns the members of a JSON object; null has none, as for Docker. The map is never nil.
func parseObject(data []byte) (map[string]json.RawMessage, error) {
	members := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &members); err != nil {
		return nil, err
	}
	if members == nil {
		members = map[string]json.RawMessage{}
	}
	return members, nil
}

// ServerName returns the name in image names of the registry that a user of docker login means: "" and the addresses of Docker Hub are
// docker.io; a scheme and a path are dropped, as docker does.
func ServerName(server string) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://"), "/")
	if host == "" || hostOf(host) == hostOf(hubKey) {
		return config.DockerHub
	}
	return host
}
