package s3

import (
	"bufio"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"github.com/kilnbuild/kiln/internal/fetch"
)

// ErrNoCredentials says that nothing has credentials for S3.
var ErrNoCredentials = errors.New("there are none: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, " +
	"or AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE, or give access_key_id and secret_access_key")

// provider returns where credentials come from: the options, or the first of the sources of AWS's tools that the environment names.
func (b *Bucket) provider(o Options) aws.CredentialsProvider {
	if o.AccessKeyID != "" {
		return static{aws.Credentials{AccessKeyID: o.AccessKeyID, SecretAccessKey: o.SecretAccessKey, SessionToken: o.SessionToken}}
	}
	return aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		if id, secret := os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"); id != "" && secret != "" {
			return aws.Credentials{AccessKeyID: id, SecretAccessKey: secret, SessionToken: os.Getenv("AWS_SESSION_TOKEN")}, nil
		}
		if role, file := os.Getenv("AWS_ROLE_ARN"), os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE"); role != "" && file != "" {
			return b.webIdentity(ctx, role, file)
		}
		if c, err := shared(); err != nil || c.AccessKeyID != "" {
			return c, err
		}
		if address, err := container(); err != nil || address != "" {
			if err != nil {
				return aws.Credentials{}, err
			}
			return endpointcreds.New(address, func(o *endpointcreds.Options) {
				o.HTTPClient = &http.Client{Timeout: endpointTimeout}
				o.AuthorizationToken = os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")
				if file := os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); file != "" {
					o.AuthorizationTokenProvider = endpointcreds.TokenProviderFunc(func() (string, error) { return small(file) })
				}
			}).Retrieve(ctx)
		}
		if strings.EqualFold(os.Getenv("AWS_EC2_METADATA_DISABLED"), "true") {
			return aws.Credentials{}, ErrNoCredentials
		}
		ctx, cancel := context.WithTimeout(ctx, endpointTimeout)
		defer cancel()
		c, err := ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = imds.New(imds.Options{}) }).Retrieve(ctx)
		if err != nil {
			return c, ErrNoCredentials // a machine that is none of EC2 has nothing there
		}
		return c, nil
	})
}

// endpointTimeout is how long a server on this machine or its host may take to give credentials.
const endpointTimeout = 5 * time.Second

type static struct{ aws.Credentials }

func (s static) Retrieve(context.Context) (aws.Credentials, error) { return s.Credentials, nil }

// maxFile bounds files with tokens and credentials, in bytes.
const maxFile = 1 << 20

func small(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return strings.TrimSpace(string(data)), err
}

// webIdentity exchanges a token that says who a job is, as Kubernetes and GitHub give them, for credentials (AWS STS API Reference,
// AssumeRoleWithWebIdentity). The request is not signed: the token is the proof.
func (b *Bucket) webIdentity(ctx context.Context, role, file string) (aws.Credentials, error) {
	token, err := small(file)
	if err != nil {
		return aws.Credentials{}, err
	}
	session := os.Getenv("AWS_ROLE_SESSION_NAME")
	if session == "" {
		session = fmt.Sprintf("kiln-%d", time.Now().Unix())
	}
	form := url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"},
		"RoleArn": {role}, "RoleSessionName": {session}, "WebIdentityToken": {token},
	}.Encode()
	address := "https://sts." + b.region + ".amazonaws.com/"
	if strings.HasPrefix(b.region, "cn-") {
		address = "https://sts." + b.region + ".amazonaws.com.cn/"
	}
	if own := os.Getenv("AWS_ENDPOINT_URL_STS"); own != "" {
		address = own
	}
	var c aws.Credentials
	err = b.http.Patience().Retry(ctx, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(form))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := b.http.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxFile))
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			var a struct{ Error answer }
			_ = xml.Unmarshal(text, &a) // the status says enough
			status := fetch.NewStatusError(resp)
			status.Text = fetch.Quote(strings.Trim(a.Error.Code+": "+a.Error.Message, ": "))
			return status
		}
		var a struct {
			Result struct {
				Credentials struct {
					AccessKeyId, SecretAccessKey, SessionToken string
					Expiration                                 time.Time
				}
			} `xml:"AssumeRoleWithWebIdentityResult"`
		}
		if err := xml.Unmarshal(text, &a); err != nil || a.Result.Credentials.AccessKeyId == "" {
			return fetch.Invalid("%s sent no credentials", req.URL.Host)
		}
		got := a.Result.Credentials
		c = aws.Credentials{
			AccessKeyID: got.AccessKeyId, SecretAccessKey: got.SecretAccessKey, SessionToken: got.SessionToken,
			CanExpire: true, Expires: got.Expiration,
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("assume the role %s: %w", role, err)
	}
	return c, err
}

// shared reads the credentials that a profile has in AWS's file of them; they are empty if there is no such file.
func shared() (aws.Credentials, error) {
	file, profile := os.Getenv("AWS_SHARED_CREDENTIALS_FILE"), os.Getenv("AWS_PROFILE")
	if file == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return aws.Credentials{}, nil // nobody's
		}
		file = filepath.Join(home, ".aws", "credentials")
	}
	text, err := small(file)
	if errors.Is(err, os.ErrNotExist) && profile == "" {
		return aws.Credentials{}, nil
	}
	if err != nil {
		return aws.Credentials{}, err
	}
	named := profile != ""
	if !named {
		profile = "default"
	}
	c := readProfile(text, profile)
	if named && c.AccessKeyID == "" {
		return c, fmt.Errorf("%s has no aws_access_key_id for the profile %q: kiln reads keys alone; "+
			"aws configure export-credentials --format env prints those of others", file, profile)
	}
	return c, nil
}

// readProfile reads the keys of one profile (AWS CLI User Guide, "Configuration and credential file settings").
func readProfile(text, profile string) aws.Credentials {
	var c aws.Credentials
	mine := false
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, maxFile)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "[") {
			mine = strings.TrimSpace(strings.Trim(line, "[]")) == profile
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !mine || !ok || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "aws_access_key_id":
			c.AccessKeyID = value
		case "aws_secret_access_key":
			c.SecretAccessKey = value
		case "aws_session_token":
			c.SessionToken = value
		}
	}
	if c.SecretAccessKey == "" {
		return aws.Credentials{}
	}
	return c
}

// container returns the address that gives credentials to a container of ECS or EKS, or "". As in AWS's own tools, plain http leads only to
// this machine, and to the addresses at which ECS and EKS listen.
func container() (string, error) {
	if path := os.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); path != "" {
		return "http://169.254.170.2" + path, nil
	}
	address := os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
	if address == "" {
		return "", nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return "", errors.New("AWS_CONTAINER_CREDENTIALS_FULL_URI is not an address")
	}
	ip := net.ParseIP(u.Hostname())
	local := u.Hostname() == "localhost" || ip.IsLoopback() || ip.Equal(net.IPv4(169, 254, 170, 2)) || ip.Equal(net.IPv4(169, 254, 170, 23)) ||
		ip.Equal(net.ParseIP("fd00:ec2::23"))
	if u.Scheme != "https" && !local {
		return "", fmt.Errorf("AWS_CONTAINER_CREDENTIALS_FULL_URI leads to %s by plain http", u.Host)
	}
	return address, nil
}
