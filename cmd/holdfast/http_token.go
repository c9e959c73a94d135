package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/config"
)

// tokenBytes is how much chance a token has that the node makes.
const tokenBytes = 32

// openToken reads the token of the HTTP interface, and makes it if there is none.
func openToken(path string) (string, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		b := make([]byte, tokenBytes)
		_, _ = rand.Read(b) // never fails (crypto/rand)
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = writeWhole(path, []byte(hex.EncodeToString(b)+"\n"), 0o600)
		}
	}
	if err != nil {
		return "", fmt.Errorf("http.token_file: %w", err)
	}
	token, err := config.ReadSecret(path)
	if err != nil {
		return "", fmt.Errorf("http.token_file: %w", err)
	}
	return token, nil
}

// needToken lets what changes something pass only with the token: whatever is no GET, so that no
// new path can be forgotten. An empty token lets nobody pass.
func needToken(token string, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		said, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(said))
		if !ok || token == "" || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeHTTPError(w, http.StatusUnauthorized, errors.New("the token is missing or wrong: "+
				"who may change the group can read the node's http.token_file (--token-file)"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// defaultTokenFile is that of a node with the default data_dir.
const defaultTokenFile = "/var/lib/holdfast/http-token"

// tokenFileEnv is the key of the configuration as an environment variable, for commands too.
const tokenFileEnv = "HOLDFAST_HTTP_TOKEN_FILE"

// tokenFlag adds the flag that names the token's file.
func tokenFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "token-file", cmp.Or(os.Getenv(tokenFileEnv), defaultTokenFile),
		"the node's http.token_file, which only its own user can read")
}

type tokenKey struct{}

// withToken gives the requests of a command its token. Where the default file is not there none is
// sent: the node says what it thinks of that.
func withToken(ctx context.Context, cmd *cobra.Command, path string) (context.Context, error) {
	token, err := config.ReadSecret(path)
	if err != nil {
		if cmd.Flags().Changed("token-file") || os.Getenv(tokenFileEnv) != "" {
			return nil, fmt.Errorf("--token-file, %s: %w", tokenFileEnv, err)
		}
		return ctx, nil
	}
	return context.WithValue(ctx, tokenKey{}, token), nil
}

// authorize adds the command's token to a request that changes something.
func authorize(r *http.Request) {
	if token, ok := r.Context().Value(tokenKey{}).(string); ok && r.Method != http.MethodGet {
		r.Header.Set("Authorization", "Bearer "+token)
	}
}
