package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/config"
)

// certsDir has a directory for each "host[:port]" with the authorities that are trusted there and client certificates. dockerd, containerd
// and podman read it too; see "Verify repository client with certificates" of Docker's documentation.
const certsDir = "/etc/docker/certs.d"

// maxCerts bounds how many files are read of such a directory.
const maxCerts = 1000

// settingsOf returns the settings of kiln.toml for a host, and whether there are any, with the certificates that certsDir has for it.
func (c *Client) settingsOf(name string) (set config.Registry, named bool, err error) {
	set, named = c.settings[name]
	if name == "." || name == ".." || strings.Contains(name, "/") {
		return set, named, nil
	}
	ca, pairs, err := readCerts(filepath.Join(c.certs, name))
	if err != nil {
		return set, named, fmt.Errorf("read the certificates of registry %s: %w", name, err)
	}
	set.CA = append(set.CA[:len(set.CA):len(set.CA)], ca...)
	set.KeyPairs = append(set.KeyPairs[:len(set.KeyPairs):len(set.KeyPairs)], pairs...)
	return set, named, nil
}

// readCerts returns the files of a directory: NAME.crt are authorities, NAME.cert with NAME.key client certificates. What is not there, or
// may not be listed, has none.
func readCerts(dir string) (ca []string, pairs []config.KeyPair, err error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxCerts + 1)
	if len(names) > maxCerts {
		return nil, nil, fmt.Errorf("%s has more than %d files", dir, maxCerts)
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		switch filepath.Ext(name) {
		case ".crt":
			ca = append(ca, path)
		case ".cert":
			pairs = append(pairs, config.KeyPair{Cert: path, Key: strings.TrimSuffix(path, ".cert") + ".key"})
		}
	}
	if err != nil && len(names) == 0 {
		return nil, nil, nil // it is empty, or not a directory
	}
	return ca, pairs, nil
}
