//! Which pools a template is to have: what is read of it, in the words of `pool.rs`.

use sandmesh_proto::template::{PoolProfile, PoolSettings, Template};

use crate::{
    pool::{Profile, Settings},
    view,
};

/// A pool that is to be, or the lack of one where `settings` want none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Whose.
    pub(crate) profile: Profile,
    /// How many.
    pub(crate) settings: Settings,
}

/// What a template says of its pool; nothing while no session can be made of it.
pub(crate) fn settings(template: &Template) -> PoolSettings {
    template.pool.clone().filter(|_| template.is_active).unwrap_or_default()
}

/// Whether a template has a pool.
pub(crate) fn has_pool(template: &Template) -> bool {
    let PoolSettings { max, profiles, .. } = settings(template);
    max > 0 || !profiles.is_empty()
}

/// The pools of a template: that with its own limits, and those of its profiles in their order.
pub(crate) fn pools(template: &Template) -> (Wanted, Vec<Wanted>) {
    let PoolSettings { min, max, buffer, profiles } = settings(template);
    let limits = view::limits(template.default_resources.unwrap_or_default());
    let profile = |limits| Profile { template_id: template.template_id.clone(), limits };
    let own = Wanted { profile: profile(limits), settings: Settings { min, max, buffer } };
    let other = |PoolProfile { resources, min, max, buffer }| Wanted {
        profile: profile(view::limits(resources.unwrap_or_default()).or(limits)),
        settings: Settings { min, max, buffer },
    };
    (own, profiles.into_iter().map(other).collect())
}

/// Those that want some.
pub(crate) fn filled(template: &Template) -> impl Iterator<Item = Wanted> + use<> {
    let (own, others) = pools(template);
    std::iter::once(own).chain(others).filter(|pool| pool.settings.max > 0)
}

#[cfg(test)]
mod tests {
    use sandmesh_proto::executor::Resources;

    use super::*;

    fn template(pool: PoolSettings) -> Template {
        let resources =
            Resources { cpu_millis: 500, memory_bytes: 512, disk_bytes: 1024, max_processes: 128 };
        Template {
            template_id: "t".to_owned(),
            default_resources: Some(resources),
            pool: Some(pool),
            is_active: true,
            ..Template::default()
        }
    }

    #[test]
    fn a_profile_has_the_limits_of_its_template_where_it_gives_none() {
        let resources = Some(Resources { cpu_millis: 2000, max_processes: 9, ..Resources::default() });
        let profiles = vec![PoolProfile { resources, min: 1, max: 4, buffer: 2 }];
        let template = template(PoolSettings { min: 3, max: 5, buffer: 0, profiles });
        let (own, others) = pools(&template);
        assert_eq!(own.settings, Settings { min: 3, max: 5, buffer: 0 });
        assert_eq!(others.len(), 1);
        assert_eq!(others[0].settings, Settings { min: 1, max: 4, buffer: 2 });
        let resources = view::resources(others[0].profile.limits);
        assert_eq!((resources.cpu_millis, resources.memory_bytes), (2000, 512));
        assert_eq!((resources.disk_bytes, resources.max_processes), (1024, 9));
        assert_eq!((own.profile.template_id, own.profile.limits.cpu_millis), ("t".to_owned(), 500));
    }

    #[test]
    fn a_pool_is_one_that_wants_some_of_a_template_that_can_be_used() {
        let profile = PoolProfile { resources: None, min: 0, max: 1, buffer: 0 };
        let only_profiles = PoolSettings { profiles: vec![profile], ..PoolSettings::default() };
        for (pool, count) in [
            (PoolSettings::default(), 0),
            (PoolSettings { max: 1, ..PoolSettings::default() }, 1),
            (only_profiles.clone(), 1),
            (PoolSettings { max: 1, ..only_profiles }, 2),
        ] {
            let active = template(pool.clone());
            assert_eq!((filled(&active).count(), has_pool(&active)), (count, count > 0), "{pool:?}");
            let hidden = Template { is_active: false, ..active };
            assert_eq!((filled(&hidden).count(), has_pool(&hidden)), (0, false), "{pool:?}");
        }
    }
}
