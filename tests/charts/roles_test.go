package charts

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// ownRolesOnly leaves out the roles for people.
const ownRolesOnly = "rbac: {aggregate: false, kindRoles: false}"

func TestNoRoleHasARightOnSecretsOrOnEverything(t *testing.T) {
	for name, r := range renderings(t) {
		rules := r.rules()
		if len(rules) == 0 {
			t.Errorf("%s: no rules at all", name)
		}
		for _, rule := range rules {
			for _, resource := range rule.Resources {
				if resource == "*" || strings.HasPrefix(resource, "secrets") || strings.HasPrefix(resource, "pods/") {
					t.Errorf("%s: a role may %v %s", name, rule.Verbs, resource)
				}
			}
			if slices.Contains(rule.Verbs, "*") || slices.Contains(rule.APIGroups, "*") {
				t.Errorf("%s: a role holds a wildcard: %v", name, rule)
			}
			for _, verb := range []string{"escalate", "bind", "impersonate"} {
				if slices.Contains(rule.Verbs, verb) {
					t.Errorf("%s: a role may %s", name, verb)
				}
			}
		}
	}
}

func TestANamespacedOperatorHasNoRightElsewhereButToAskWhoAWorkerIs(t *testing.T) {
	r := render(t, namespaced+"\n"+ownRolesOnly)
	if len(r.clusterRoles) != 1 {
		t.Fatalf("%d ClusterRoles", len(r.clusterRoles))
	}
	for _, rule := range r.clusterRoles[0].Rules {
		if !slices.Equal(rule.Resources, []string{"tokenreviews"}) || !slices.Equal(rule.Verbs, []string{"create"}) {
			t.Errorf("the ClusterRole may %v %v", rule.Verbs, rule.Resources)
		}
	}
	var homes []string
	for _, role := range r.roles {
		homes = append(homes, role.Namespace)
	}
	slices.Sort(homes)
	if !slices.Equal(homes, []string{namespace, "team"}) {
		t.Errorf("Roles in %v", homes)
	}
	if args := r.deployment(t).Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--namespace=team") {
		t.Errorf("the operator is run with %v", args)
	}
}

func TestBothModesGiveTheSameRights(t *testing.T) {
	everywhere, one := render(t, ownRolesOnly), render(t, namespaced+"\n"+ownRolesOnly)
	if a, b := everywhere.rules(), one.rules(); len(a) != len(b) {
		t.Errorf("%d rules in all namespaces, %d in one", len(a), len(b))
	}
}

func TestRolesForPeople(t *testing.T) {
	const aggregate = "rbac.authorization.k8s.io/aggregate-to-"
	read, all := []string{"get", "list", "watch"}, []string{"create", "update", "patch", "delete", "deletecollection"}
	tasks, shards, reports := "collecttasks", "collectshards", "validationreports"
	roles := map[string]struct {
		label string
		may   map[string][]string
	}{
		"view":                    {aggregate + "view", map[string][]string{tasks: read, shards: read, reports: read}},
		"edit":                    {aggregate + "edit", map[string][]string{tasks: all, shards: {"patch"}}},
		"admin":                   {aggregate + "admin", map[string][]string{tasks: slices.Concat(read, all), shards: slices.Concat(read, all), reports: slices.Concat(read, all)}},
		"collecttask-viewer":      {"", map[string][]string{tasks: read}},
		"collecttask-editor":      {"", map[string][]string{tasks: slices.Concat(read, all)}},
		"collectshard-viewer":     {"", map[string][]string{shards: read}},
		"collectshard-editor":     {"", map[string][]string{shards: slices.Concat(read, []string{"patch", "delete"})}},
		"validationreport-viewer": {"", map[string][]string{reports: read}},
		"validationreport-editor": {"", map[string][]string{reports: slices.Concat(read, []string{"delete"})}},
	}
	for mode, values := range map[string]string{"everywhere": "rbac: {create: false}", "namespaced": namespaced + "\nrbac: {create: false}"} {
		r := render(t, values)
		if len(r.clusterRoles) != len(roles) || len(r.roles) != 0 {
			t.Errorf("%s: %d ClusterRoles and %d Roles", mode, len(r.clusterRoles), len(r.roles))
		}
		for _, role := range r.clusterRoles {
			want, known := roles[strings.TrimPrefix(role.Name, namespace+"-collect-operator-")]
			if !known {
				t.Errorf("%s: nobody expects %s", mode, role.Name)
				continue
			}
			if want.label != "" && role.Labels[want.label] != "true" {
				t.Errorf("%s: %s has no label %s", mode, role.Name, want.label)
			}
			may := map[string][]string{}
			for _, rule := range role.Rules {
				for _, resource := range rule.Resources {
					may[resource] = append(may[resource], rule.Verbs...)
				}
			}
			// kubectl scale goes with the right to change a task.
			if slices.Contains(may[tasks], "patch") {
				want.may[tasks+"/scale"] = []string{"get", "update", "patch"}
			}
			if !reflect.DeepEqual(may, want.may) {
				t.Errorf("%s: %s may %v, not %v", mode, role.Name, may, want.may)
			}
		}
	}
}
