package proxy

import (
	"slices"
	"strings"
	"testing"
)

func TestCustomSettingsThatAreConfigured(t *testing.T) {
	got, err := parseCustomSettings([]string{"App.Tenant", "a.b.c_$1", "app.tenant"})
	if err != nil || !slices.Equal(got, []string{"app.tenant", "a.b.c_$1"}) {
		t.Errorf("%q %v", got, err)
	}
	long := "a." + strings.Repeat("b", serverNameBytes-2)
	if _, err := parseCustomSettings([]string{long}); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", "work_mem", "app.", ".app", "app tenant.x", "1a.b", "a.1b",
		`"a".b`, "a.b'", long + "b"} {
		cfg := DefaultConfig()
		cfg.CustomSettings = []string{"app.ok", name}
		if err := cfg.Validate(); err == nil ||
			!strings.Contains(err.Error(), "proxy.custom_settings[1]: ") {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "f", "public.", ".f", "*.f", "*.*", "public.f*", "public.f(int)",
		`"public".f`, "public.f g", "public." + strings.Repeat("f", serverNameBytes+1)} {
		cfg := DefaultConfig()
		cfg.HarmlessFunctions = []string{"public.ok", name}
		if err := cfg.Validate(); err == nil ||
			!strings.Contains(err.Error(), "proxy.harmless_functions[1]: ") {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := parseCustomSettings(make([]string, customSettingsMax+1)); err == nil {
		t.Error("any number of names")
	}
	if _, err := parseHarmless(make([]string, harmlessMax+1)); err == nil {
		t.Error("any number of functions")
	}
	h, err := parseHarmless([]string{"public.F", "ext.*"})
	for text, want := range map[string]bool{"public.F": true, "public.f": false, "ext.any": true,
		"public.*": false, "other.F": false} {
		schema, name, _ := strings.Cut(text, ".")
		if err != nil || h.has([]byte(schema), []byte(name)) != want {
			t.Errorf("%s: %v %v", text, !want, err)
		}
	}
}

// Configured names are asked for beside those that were learnt, each once, and are no reason to ask
// a second time.
func TestConfiguredSettingsAreAskedFor(t *testing.T) {
	cfg := DefaultConfig()
	cfg.CustomSettings = []string{"app.a", "app.b"}
	tr := newTracker("app", &cfg)
	tr.learn("app.a")
	tr.dirty = false
	sql := tr.snapshotSQL()
	if strings.Count(sql, "'app.a'") != 1 || strings.Count(sql, "'app.b'") != 1 {
		t.Error(sql)
	}
	asked := stateAsked{custom: map[string]struct{}{"app.a": {}}}
	tr.applyAsked([][3]string{{"s", "app.b", "1"}}, false, asked)
	if _, known := tr.custom["app.b"]; !known || tr.dirty {
		t.Errorf("known %v, to be asked again %v", known, tr.dirty)
	}
	bare := tracker{}
	if strings.Contains(bare.snapshotSQL(), "unnest") {
		t.Error("asks for names that there are not")
	}
}
