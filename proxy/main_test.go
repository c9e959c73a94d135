package proxy_test

import (
	"os"
	"testing"

	"holdfast/proxy/proxytest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	proxytest.RemoveTemplate()
	os.Exit(code)
}
