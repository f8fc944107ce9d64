package azblob

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/kilnbuild/kiln/cache/remote/bucket"
	"github.com/kilnbuild/kiln/internal/fetch"
)

// isAzure reports whether an address is one of Azure's own servers, which may see the identity of the environment: a token opens every
// account of its owner.
func isAzure(u *url.URL) bool {
	host := strings.ToLower(u.Hostname())
	for _, suffix := range []string{".core.windows.net", ".storage.azure.net", ".core.chinacloudapi.cn", ".core.usgovcloudapi.net"} {
		if u.Scheme == "https" && strings.HasSuffix(host, suffix) {
			return true
		}
	}
	return false
}

// identity gets tokens for storage with what the environment says of who runs kiln, as Azure's own tools name it: a client with a secret, a
// federated token as Kubernetes and GitHub give it, or the identity of the machine. Azure's package for that takes 0.3 ms of every start.
type identity struct {
	http *bucket.HTTP

	mu    sync.Mutex
	token azcore.AccessToken
}

// early is how long before its end a token is not used any more.
const early = 5 * time.Minute

// maxToken bounds a token and the answer that has one, in bytes.
const maxToken = 256 << 10

// machineTimeout is how long the machine may take to say who it is.
const machineTimeout = 5 * time.Second

// GetToken implements azcore.TokenCredential.
func (i *identity) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if time.Until(i.token.ExpiresOn) > early {
		return i.token, nil
	}
	scope := strings.Join(o.Scopes, " ")
	tenant, client := os.Getenv("AZURE_TENANT_ID"), os.Getenv("AZURE_CLIENT_ID")
	secret, file := os.Getenv("AZURE_CLIENT_SECRET"), os.Getenv("AZURE_FEDERATED_TOKEN_FILE")
	var err error
	if tenant != "" && client != "" && (secret != "" || file != "") {
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {client}, "scope": {scope}}
		if secret != "" {
			form.Set("client_secret", secret)
		} else {
			text, err := readToken(file)
			if err != nil {
				return azcore.AccessToken{}, err
			}
			form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
			form.Set("client_assertion", text)
		}
		authority := os.Getenv("AZURE_AUTHORITY_HOST")
		if authority == "" {
			authority = "https://login.microsoftonline.com/"
		}
		address := strings.TrimSuffix(authority, "/") + "/" + url.PathEscape(tenant) + "/oauth2/v2.0/token"
		i.token, err = i.ask(ctx, http.MethodPost, address, strings.NewReader(form.Encode()))
		if err != nil {
			err = fmt.Errorf("get a token of Azure for the client %s: %w", client, err)
		}
		return i.token, err
	}
	query := url.Values{"api-version": {"2018-02-01"}, "resource": {strings.TrimSuffix(scope, "/.default")}}
	if client != "" {
		query.Set("client_id", client)
	}
	ctx, cancel := context.WithTimeout(ctx, machineTimeout)
	defer cancel()
	i.token, err = i.ask(ctx, http.MethodGet, "http://169.254.169.254/metadata/identity/oauth2/token?"+query.Encode(), nil)
	if err != nil {
		err = errNoIdentity
	}
	return i.token, err
}

// errNoIdentity says that nothing tells who runs kiln.
var errNoIdentity = errors.New("there are no credentials for Azure: give secret_access_key, or set AZURE_TENANT_ID, AZURE_CLIENT_ID, " +
	"and AZURE_CLIENT_SECRET or AZURE_FEDERATED_TOKEN_FILE")

func readToken(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if len(data) > maxToken {
		return "", fmt.Errorf("%s is longer than %d bytes, and no token", name, maxToken)
	}
	return strings.TrimSpace(string(data)), err
}

// ask makes a request for a token (Microsoft identity platform, "OAuth 2.0 client credentials flow").
func (i *identity) ask(ctx context.Context, method, address string, body io.Reader) (t azcore.AccessToken, err error) {
	r, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return t, errors.New("AZURE_AUTHORITY_HOST is not an address")
	}
	r.Header.Set("Metadata", "true")
	if body != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := i.http.Do(r)
	if err != nil {
		return t, err
	}
	if resp.StatusCode != http.StatusOK {
		return t, fetch.NewStatusError(resp)
	}
	defer resp.Body.Close()
	var a struct {
		Token   string      `json:"access_token"`
		Expires json.Number `json:"expires_in"` // in seconds; the machine sends text
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxToken)).Decode(&a); err != nil || a.Token == "" {
		return t, fetch.Invalid("%s sent no token", r.URL.Host)
	}
	seconds, _ := a.Expires.Int64() // 0: it is used once
	return azcore.AccessToken{Token: a.Token, ExpiresOn: time.Now().Add(time.Duration(min(seconds, 86400)) * time.Second)}, nil
}
