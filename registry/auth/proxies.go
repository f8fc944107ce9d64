package auth

import "os"

// proxyEntry is the proxies of one endpoint in config.json.
type proxyEntry struct {
	HTTP  string `json:"httpProxy"`
	HTTPS string `json:"httpsProxy"`
	FTP   string `json:"ftpProxy"`
	No    string `json:"noProxy"`
	All   string `json:"allProxy"`
}

// Proxies returns the proxies that Docker's config.json has for builds, by the names of the predefined arguments: "HTTP_PROXY", "NO_PROXY".
// They are those of the endpoint $DOCKER_HOST, and else the default ones (docker/cli, cli/config/configfile, ParseProxyConfig).
func Proxies() (map[string]string, error) {
	c, err := readDockerConfig()
	if err != nil {
		return nil, err
	}
	p, ok := c.Proxies[os.Getenv("DOCKER_HOST")]
	if !ok {
		p = c.Proxies["default"]
	}
	found := map[string]string{}
	for name, value := range map[string]string{
		"HTTP_PROXY": p.HTTP, "HTTPS_PROXY": p.HTTPS, "FTP_PROXY": p.FTP, "NO_PROXY": p.No, "ALL_PROXY": p.All,
	} {
		if value != "" {
			found[name] = value
		}
	}
	return found, nil
}
